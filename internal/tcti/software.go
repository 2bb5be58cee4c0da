package tcti

import (
	"context"
	"errors"
	"fmt"

	"github.com/tpm-agent/tpm-agent/internal/softtpm"
)

// openSoftware starts the private software TPM, which lives as long as the
// connection. The next program that opens it waits until this one has closed it.
func openSoftware(ctx context.Context) (*Conn, error) {
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
	return newStream(tpm.Conn(), framing{}, tpm.Stop, softtpm.StopTime)
}
