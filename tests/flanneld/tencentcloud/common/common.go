// Package common stands for the part of Tencent's cloud SDK that flannel's tencent-vpc backend imports. The Go
// module proxy does not serve the SDK; no test uses that backend.
package common

func pointer[T any](value T) *T { return &value }

func StringPtr(value string) *string { return pointer(value) }

func BoolPtr(value bool) *bool { return pointer(value) }

func StringPtrs(values []string) []*string {
	var pointers []*string
	for _, value := range values {
		pointers = append(pointers, pointer(value))
	}
	return pointers
}
