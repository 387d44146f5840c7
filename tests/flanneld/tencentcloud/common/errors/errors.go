// Package errors has the one error type of the SDK that flannel asks for.
package errors

type TencentCloudSDKError struct{}

func (*TencentCloudSDKError) Error() string {
	return "flanneld was built without Tencent's cloud SDK: the backend tencent-vpc does not work"
}
