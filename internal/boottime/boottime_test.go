package boottime

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timers returns what the kernel reports about the timers of this process.
func timers(t *testing.T) (found []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == "anon_inode:[timerfd]" {
			info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
			if err == nil {
				found = append(found, string(info))
			}
		}
	}
	return found
}

// awaitNoTimer waits for the goroutines that close descriptors.
func awaitNoTimer(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(timers(t)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left open: %q", timers(t))
		}
	}
}

// ways returns both ways to wait, with a descriptor and without.
func ways() map[string]func(time.Duration, func()) func() {
	c := New()
	return map[string]func(time.Duration, func()) func(){
		"timer": c.AfterFunc,
		"poll":  func(d time.Duration, f func()) func() { return c.poll(c.Now()+clip(d), f) },
	}
}

func TestNow(t *testing.T) {
	var before, after unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &before); err != nil {
		t.Fatal(err)
	}
	now := New().Now()
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &after); err != nil {
		t.Fatal(err)
	}
	if now < time.Duration(before.Nano()) || now > time.Duration(after.Nano()) {
		t.Errorf("%v is not between %v and %v", now, before, after)
	}
}

// TestTimerIsOfBootTime checks that the kernel counts by the clock that includes
// sleep, and that children do not inherit the timer.
func TestTimerIsOfBootTime(t *testing.T) {
	stop := New().AfterFunc(time.Hour, func() { t.Error("fired") })
	defer awaitNoTimer(t)
	defer stop()
	info := timers(t)
	if len(info) != 1 || !strings.Contains(info[0], fmt.Sprintf("clockid: %d\n", unix.CLOCK_BOOTTIME)) {
		t.Fatalf("got %q", info)
	}
	var flags int
	for line := range strings.Lines(info[0]) {
		_, _ = fmt.Sscanf(line, "flags: %o", &flags)
	}
	if flags&unix.O_CLOEXEC == 0 || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags are %o", flags)
	}
}

func TestFires(t *testing.T) {
	for name, after := range ways() {
		for _, d := range []time.Duration{math.MinInt64, -1, 0, 1, 20 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s/%d", name, d), func(t *testing.T) {
				c := New()
				start, fired := c.Now(), make(chan time.Duration)
				after(d, func() { fired <- c.Now() })
				if took := <-fired - start; took < d {
					t.Errorf("fired after %v", took)
				}
				awaitNoTimer(t)
			})
		}
	}
}

func TestStop(t *testing.T) {
	for name, after := range ways() {
		for _, d := range []time.Duration{time.Hour, math.MaxInt64, (1<<32 - 1) * time.Second} {
			t.Run(fmt.Sprintf("%s/%v", name, d), func(t *testing.T) {
				stop := after(d, func() { t.Error("fired") })
				stop()
				stop()
				awaitNoTimer(t)
			})
		}
	}
}

// TestStopFromInside checks that f may stop its own timer.
func TestStopFromInside(t *testing.T) {
	for name, after := range ways() {
		t.Run(name, func(t *testing.T) {
			handle, done := make(chan func(), 1), make(chan struct{})
			handle <- after(0, func() {
				stop := <-handle
				stop()
				stop()
				close(done)
			})
			<-done
			awaitNoTimer(t)
		})
	}
}

// TestStopAgainstFire stops timers twice while they fire: f is called at most
// once, and no descriptor stays open.
func TestStopAgainstFire(t *testing.T) {
	for name, after := range ways() {
		t.Run(name, func(t *testing.T) {
			var calls [500]atomic.Int32
			var stopping sync.WaitGroup
			for i := range calls {
				stop := after(time.Duration(i)*time.Microsecond/5, func() { calls[i].Add(1) })
				stopping.Go(stop)
				stopping.Go(stop)
			}
			stopping.Wait()
			awaitNoTimer(t)
			for i := range calls {
				if n := calls[i].Load(); n > 1 {
					t.Errorf("timer %d: called %d times", i, n)
				}
			}
		})
	}
}

// TestMany checks that each of many timers fires once.
func TestMany(t *testing.T) {
	c := New()
	var order []int
	fired := make(chan int)
	for i := range 20 {
		c.AfterFunc(time.Duration(20-i)*10*time.Millisecond, func() { fired <- i })
	}
	for range 20 {
		order = append(order, <-fired)
	}
	slices.Sort(order)
	if len(slices.Compact(order)) != 20 {
		t.Errorf("these fired: %v", order)
	}
	awaitNoTimer(t)
}

// TestNoDescriptorLeft checks that timers fire without a free descriptor.
func TestNoDescriptorLeft(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	c := New()
	none := before
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err := newTimer(time.Hour)
	fired := make(chan struct{})
	c.AfterFunc(10*time.Millisecond, func() { close(fired) })
	stop := c.AfterFunc(time.Hour, func() { t.Error("fired") })
	<-fired
	stop()
	if restore := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); restore != nil {
		t.Fatal(restore)
	}
	if err == nil {
		t.Error("there was a descriptor")
	}
}
