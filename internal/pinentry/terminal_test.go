package pinentry

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// A terminal that was left without echo gets it back; one that somebody else
// has taken over is left alone.
func TestTerminalIsRestored(t *testing.T) {
	silent := func(s *unix.Termios) { s.Lflag &^= unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL }
	for name, test := range map[string]struct {
		before, after func(*unix.Termios)
		early         bool // the program was ended
		restored      bool
	}{
		"asked for a PIN":   {nil, silent, true, true},
		"asked for a key":   {nil, func(s *unix.Termios) { s.Lflag &^= unix.ECHO | unix.ICANON; s.Cc[unix.VMIN] = 4 }, true, true},
		"ended by itself":   {nil, silent, false, false},
		"was silent before": {silent, nil, true, true},
		"a shell's editor":  {nil, func(s *unix.Termios) { silent(s); s.Lflag &^= unix.ICANON; s.Iflag &^= unix.ICRNL }, true, false},
		"another eraser":    {nil, func(s *unix.Termios) { silent(s); s.Cc[unix.VERASE] = 8 }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			if test.before != nil {
				p.Change(test.before)
			}
			before := p.Settings()
			tty, err := openTerminal(p.Path())
			if err != nil {
				t.Fatal(err)
			}
			if test.after != nil {
				p.Change(test.after)
			}
			tty.close(test.early)
			if got := p.Settings() == before; got != test.restored {
				t.Errorf("as before: %v, want %v", got, test.restored)
			}
		})
	}
}

func TestOpenTerminal(t *testing.T) {
	for path, want := range map[string]error{"": errNoTerminal, "/dev/null": unix.ENOTTY, t.TempDir() + "/gone": os.ErrNotExist} {
		if tty, err := openTerminal(path); tty != nil || !errors.Is(err, want) {
			t.Errorf("%q: got %v, %v", path, tty, err)
		}
	}
	var none *terminal
	none.close(true)
}
