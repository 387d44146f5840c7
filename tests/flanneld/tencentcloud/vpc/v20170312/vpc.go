// Package v20170312 has the types of the SDK that flannel's tencent-vpc backend is compiled with. Its calls fail.
package v20170312

import "errors"

var errAbsent = errors.New("flanneld was built without Tencent's cloud SDK: the backend tencent-vpc does not work")

type (
	Client struct{}
	Filter struct {
		Name   *string
		Values []*string
	}
	Route struct {
		RouteId                                                 *uint64
		DestinationCidrBlock, GatewayType, GatewayId, RouteType *string
		Enabled                                                 *bool
	}
	RouteTable struct {
		RouteTableId *string
		RouteSet     []*Route
	}
	DescribeRouteTablesRequest  struct{ Filters []*Filter }
	DescribeRouteTablesResponse struct {
		Response struct{ RouteTableSet []*RouteTable }
	}
	// Deletion and creation name the same things.
	change struct {
		RouteTableId *string
		Routes       []*Route
	}
)

func NewClientWithSecretId(_, _, _ string) (*Client, error) { return nil, errAbsent }

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

func NewDeleteRoutesRequest() *change { return &change{} }

func NewCreateRoutesRequest() *change { return &change{} }

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errAbsent
}

func (*Client) DeleteRoutes(*change) (any, error) { return nil, errAbsent }

func (*Client) CreateRoutes(*change) (any, error) { return nil, errAbsent }
