package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"
)

// MaxClaims bounds the claims of one ClaimMany.
const MaxClaims = 256

// ServeClaims answers a ClaimMany by a node's claim. It returns when every claim
// has been decided, also when nobody is told any more.
func ServeClaims(ctx context.Context, req *ClaimManyRequest, claim func(context.Context, *ClaimRequest) (*ClaimResponse, error), tell func(*ClaimManyResponse) error) error {
	claims := req.GetClaims()
	if len(claims) > MaxClaims {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d claims in one call", len(claims)))
	}
	decided := make(chan *ClaimOutcome, len(claims))
	var wg sync.WaitGroup
	for i, c := range claims {
		wg.Go(func() {
			resp, err := claim(ctx, c)
			decided <- outcome(i, resp, err)
		})
	}
	defer wg.Wait()
	for told := 0; told < len(claims); {
		answer := &ClaimManyResponse{Outcomes: []*ClaimOutcome{<-decided}}
		for range len(decided) {
			answer.Outcomes = append(answer.Outcomes, <-decided)
		}
		if err := tell(answer); err != nil {
			return err
		}
		told += len(answer.Outcomes)
	}
	return nil
}

func outcome(index int, resp *ClaimResponse, err error) *ClaimOutcome {
	o := &ClaimOutcome{Index: uint32(index), Response: resp}
	if err != nil {
		o.Response, o.Code, o.Message = nil, uint32(connect.CodeOf(err)), Text(err.Error())
		if e, ok := errors.AsType[*connect.Error](err); ok {
			o.Message = Text(e.Message())
		}
	}
	return o
}

// Result is what Claim would have answered.
func (o *ClaimOutcome) Result() (*ClaimResponse, error) {
	if o.GetResponse() == nil {
		return nil, connect.NewError(connect.Code(o.GetCode()), errors.New(o.GetMessage()))
	}
	return o.GetResponse(), nil
}
