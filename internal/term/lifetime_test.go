package term

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// noTimes are invalid times. The tests do not compare them with OpenSSH's parser,
// because older versions accept some of them.
var noTimes = []string{
	"", " ", "s", "m5", "5x", "-1", "+1", " 1", "1 ", "1m 2", "1.5", "1.5s", ".5", "1e3", "0x10", "1mm", "1s2s", "1s2", "forever", "٣",
	"4294967296", "7102w", "136y", "99999999999999999999999999", "18446744073709551617", "4294967295s1m", "1\x00", "1ſ", "1\x13",
}

// times are valid times.
var times = map[string]time.Duration{
	"0": 0, "0s": 0, "1": time.Second, "90": 90 * time.Second, "007": 7 * time.Second, "2S": 2 * time.Second,
	"10m": 10 * time.Minute, "10M": 10 * time.Minute, "1h30m": 90 * time.Minute, "1H30": time.Hour + 30*time.Second,
	"1d": 24 * time.Hour, "2w": 14 * 24 * time.Hour, "1W2D3H4M5S": 788645 * time.Second, "5s1m": 65 * time.Second, "1m1m": 2 * time.Minute,
	"3550w5d3h14m7s": 2147483647 * time.Second,
}

// TestParseLifetime checks that valid times are read and invalid ones are refused.
func TestParseLifetime(t *testing.T) {
	t.Parallel()
	for s, want := range times {
		if got, err := ParseLifetime(s); err != nil || got != want {
			t.Errorf("parseLifetime(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	// OpenSSH's own parser ends at 2^31-1; the protocol does not.
	for _, s := range []string{"4294967295", "7101w3d6h28m15s"} {
		if got, err := ParseLifetime(s); err != nil || got != 4294967295*time.Second {
			t.Errorf("parseLifetime(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range noTimes {
		if got, err := ParseLifetime(s); err == nil {
			t.Errorf("parseLifetime(%q) = %v, want an error", s, got)
		} else if strings.ContainsAny(err.Error(), "\x00\x13") {
			t.Errorf("parseLifetime(%q) repeats control characters: %q", s, err)
		}
	}
}

// TestParseLifetimeAsOpenSSH checks that ssh reads the same times in the same way.
// ssh -G prints them in seconds.
func TestParseLifetimeAsOpenSSH(t *testing.T) {
	t.Parallel()
	needs.Programs(t, "ssh")
	for s, want := range times {
		out, err := exec.Command("ssh", "-F", "none", "-G", "-o", "ConnectTimeout="+s, "host").CombinedOutput()
		if line := fmt.Sprintf("connecttimeout %d\n", int(want/time.Second)); err != nil || !strings.Contains("\n"+string(out), "\n"+line) {
			t.Errorf("ssh does not read %q as %v: %v", s, want, err)
		}
	}
}

// FuzzParseLifetime checks that ParseLifetime does not crash, accepts only numbers with
// units, and returns only lifetimes that fit into the protocol.
func FuzzParseLifetime(f *testing.F) {
	for s := range times {
		f.Add(s)
	}
	for _, s := range noTimes {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseLifetime(s)
		if err != nil {
			if got != 0 {
				t.Errorf("%q: %v with the error %v", s, got, err)
			}
			return
		}
		if got < 0 || got%time.Second != 0 || got/time.Second > 1<<32-1 {
			t.Errorf("%q: %v", s, got)
		}
		if s == "" || strings.Trim(s, "0123456789smhdwSMHDW") != "" {
			t.Errorf("%q is taken as %v", s, got)
		}
		again, err := ParseLifetime(fmt.Sprint(int64(got / time.Second)))
		if err != nil || again != got {
			t.Errorf("%q is %v, which comes back as %v, %v", s, got, again, err)
		}
	})
}
