package tcti

import (
	"context"
	"errors"
	"fmt"

	"github.com/tpm-agent/tpm-agent/internal/softtpm"
)

// openSoftware starts the private software TPM. It lives as long as the
// connection: who opens it next waits until this one has closed.
func openSoftware(ctx context.Context) (wire, error) {
	dir, err := softtpm.StateDir()
	if err != nil {
		return nil, err
	}
	tpm, err := softtpm.Start(ctx, dir)
	if errors.Is(err, softtpm.ErrBusy) {
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	s, err := newStream(tpm.Conn(), rawFraming{})
	if err != nil {
		tpm.Stop(false)
		return nil, err
	}
	s.leave = tpm.Stop
	s.wait = softtpm.StopTime
	return s, nil
}
