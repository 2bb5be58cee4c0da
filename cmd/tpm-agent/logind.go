package main

import (
	"context"
	"log/slog"
	"os"
	"sync"

	"github.com/tpm-agent/tpm-agent/internal/logind"
)

// watchLogin has PINs forgotten when the machine is about to sleep and when the
// user's screen gets locked. It begins when something is remembered: an agent
// that has nothing to forget does not go on the bus, and no machine waits for it
// before it sleeps. stop returns when it has ended.
func watchLogin(ctx context.Context, sys system, log *slog.Logger, remembered <-chan struct{}, forget func() int) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-remembered:
		}
		o := logind.Options{Address: sys.getenv("DBUS_SYSTEM_BUS_ADDRESS"), UID: os.Getuid(), Log: log}
		err := logind.Watch(ctx, o, func(reason string) {
			pins := forget()
			log.Info("PINs and consent forgotten", "reason", reason, "pins", pins)
		})
		if err != nil {
			log.Warn("PINs are not forgotten when the machine sleeps or the screen is locked", "cause", err)
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}
