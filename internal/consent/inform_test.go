package consent

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
)

// reader is a Prompter whose user reads each notice for some time.
type reader struct {
	ask.Prompter
	time time.Duration

	shown atomic.Int32
	read  atomic.Int32 // to the end
}

func (r *reader) Inform(ctx context.Context, _ ask.Notice) {
	r.shown.Add(1)
	select {
	case <-time.After(r.time):
		r.read.Add(1)
	case <-ctx.Done():
	}
}

func (o *testOwner) informs(wait time.Duration) (took time.Duration) {
	begun := time.Now()
	o.inform(ask.Question{Name: o.id.Name}, wait)
	return time.Since(begun)
}

// TestInform checks that a client waits until its notice was shown, but not for
// long, and that the notice then stays for a minute at most.
func TestInform(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		reads time.Duration
		took  time.Duration // by inform
		read  int32
	}{
		"shown at once": {0, 0, 1},
		"shown soon":    {noticeLead - 1, noticeLead - 1, 1},
		"read":          {time.Second, noticeLead, 1},
		"not read":      {time.Hour, noticeLead, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o, user := newTestOwner(&fakeKey{}), &reader{time: test.reads}
				o.Prompter = user
				begun := time.Now()
				if took := o.informs(time.Hour); took != test.took {
					t.Errorf("the client waits for %v, want %v", took, test.took)
				}
				if !o.rounds.wait(time.Hour) {
					t.Error("the notice does not end")
				}
				if open := time.Since(begun); open != min(test.reads, noticeTime) || user.read.Load() != test.read {
					t.Errorf("the notice was open for %v and read %d times", open, user.read.Load())
				}
			})
		})
	}
}

// TestInformOnce checks that there is one notice at a time, that a shutdown
// closes it, and that no notice is shown without a Prompter.
func TestInformOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, user := newTestOwner(&fakeKey{}), &reader{time: 10 * time.Second}
		if took := o.informs(0); took != 0 {
			t.Errorf("without a Prompter the client waits for %v", took)
		}
		o.Prompter = user
		o.informs(0)
		if took := o.informs(0); took != 0 || user.shown.Load() != 1 {
			t.Errorf("a second client waits for %v, and sees %d notices", took, user.shown.Load())
		}
		time.Sleep(11 * time.Second)
		o.informs(0)
		begun := time.Now()
		if err := o.Wait(time.Minute); err != nil || time.Since(begun) > 0 || user.shown.Load() != 2 || user.read.Load() != 1 {
			t.Errorf("after %v: %v, %d notices, %d read", time.Since(begun), err, user.shown.Load(), user.read.Load())
		}
	})
}
