package main

import (
	"context"
	"fmt"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// mayTry finds out how many wrong PINs the TPM still takes for the key of a file, -1
// if they are not counted, and wants to hear that the try that may lock the TPM is
// to be made. again: the PIN before it was wrong.
func (a *asker) mayTry(ctx context.Context, key *tpmkey.Key, file string, again bool) (tries int, err error) {
	lo, err := key.Lockout(ctx)
	switch {
	case err != nil:
		return 0, err
	case lo.Tries == 0:
		return 0, &tpmkey.LockoutError{Wait: lo.Wait}
	case lo.Tries == 1:
		return 1, a.lastTry(ctx, lo, file, again)
	}
	return lo.Tries, nil
}

func (a *asker) lastTry(ctx context.Context, lo tpmkey.Lockout, file string, again bool) error {
	answer, err := a.line(ctx, prompt.LastTry(file, again))
	defer clear(answer)
	if err != nil {
		err = fmt.Errorf("asking whether to use the last try: %w", err)
	} else if !prompt.SaysYes(answer) {
		err = errLastTryLeft
	}
	if err != nil && ctx.Err() == nil && lo.Wait > 0 {
		return withHint(err, "nothing was changed; wait %s, and the TPM gives a try back", prompt.Duration(lo.Wait))
	}
	return err
}
