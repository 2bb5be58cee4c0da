package pinentry

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// This test program is its own pinentry. If the variable is set, it plays the
// part that the variable describes.
const partVariable = "TEST_PINENTRY"

func TestMain(m *testing.M) {
	if text := os.Getenv(partVariable); text != "" {
		var p part
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			panic(err)
		}
		p.play()
		return
	}
	goleak.VerifyTestMain(m)
}

// part is how a fake pinentry behaves. It answers OK to commands without an
// entry in Answers.
type part struct {
	Greeting string            // "OK Pleased to meet you\n", if it is empty
	Answers  map[string]string // by the beginning of the command
	Log      string            // the file that gets the commands
	Alive    string            // a FIFO that the fake and its children hold open for writing

	Do         string // what it does at the command At: one of the words of act
	At         string // "START": instead of the greeting
	IgnoreTERM bool

	timeout time.Duration // for the dialog; 0: an hour
}

func (p part) play() {
	if p.IgnoreTERM {
		signal.Ignore(syscall.SIGTERM)
	}
	if p.Alive != "" {
		hold, err := os.OpenFile(p.Alive, os.O_WRONLY, 0)
		if err != nil {
			panic(err)
		}
		// dup(2) leaves it open in the programs that this one starts.
		if _, err := syscall.Dup(int(hold.Fd())); err != nil {
			panic(err)
		}
	}
	if p.At == "START" {
		p.act()
	}
	if p.Greeting == "" {
		p.Greeting = "OK Pleased to meet you\n"
	}
	fmt.Print(p.Greeting)
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		p.obey(commands.Text())
	}
}

// note writes a line to the log.
func (p part) note(line string) {
	if p.Log == "" {
		return
	}
	log, err := os.OpenFile(p.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(log, line)
	log.Close()
}

func (p part) obey(command string) {
	p.note(command)
	if p.At != "" && strings.HasPrefix(command, p.At) {
		p.act()
	}
	for start, answer := range p.Answers {
		if strings.HasPrefix(command, start) {
			fmt.Print(answer)
			return
		}
	}
	if command == "BYE" {
		fmt.Println("OK closing connection")
		os.Exit(0)
	}
	fmt.Println("OK")
}

func (p part) act() {
	switch p.Do {
	case "exit":
		fmt.Fprintln(os.Stderr, "cannot open display: \x1b[31m:0")
		os.Exit(3)
	case "its own PIN":
		fmt.Printf("D %s\nOK\n", ownPIN(0))
	case "half":
		fmt.Print("D 12\nD 34")
		os.Exit(0)
	case "hang":
		p.hang()
	case "close": // its output, and stay
		os.Stdout.Close()
		time.Sleep(time.Hour)
	case "endless": // a line that never ends
		_, _ = io.Copy(os.Stdout, endless("x"))
	case "comments":
		_, _ = io.Copy(os.Stdout, endless("# nothing new\n"))
	case "data":
		_, _ = io.Copy(os.Stdout, endless("D 31415926535897932384\n"))
	case "long line":
		fmt.Println("D " + strings.Repeat("x", 1<<20))
	case "children": // that ignore SIGTERM, too
		startStubborn()
		p.hang()
	default:
		panic(p.Do)
	}
}

// ownPIN returns a PIN with each octet changed by mask, so that a program that must
// not hold the PIN can recognize it.
func ownPIN(mask byte) []byte {
	pin := make([]byte, 48)
	for i := range pin {
		pin[i] = byte('!'+(i*i*7+i*31)%90) ^ mask
		if pin[i]^mask == '%' {
			pin[i] = 'x' ^ mask
		}
	}
	return pin
}

// hang notes that it hangs, and does.
func (p part) hang() {
	p.note("hangs")
	time.Sleep(time.Hour)
}

// startStubborn starts processes that hold what this one has open.
func startStubborn() {
	files := make([]uintptr, 10)
	for fd := range files {
		files[fd] = uintptr(fd)
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			files[fd] = ^uintptr(0) // is not open
		}
	}
	_, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"}, &syscall.ProcAttr{
		Env: []string{"PATH=/usr/bin:/bin"}, Files: files,
	})
	if err != nil {
		panic(err)
	}
}

// endless is a reader that repeats a text.
type endless string

func (e endless) Read(buf []byte) (int, error) {
	n := 0
	for n+len(e) <= len(buf) {
		n += copy(buf[n:], e)
	}
	return n, nil
}

// ask starts the fake for a question in a window, and checks that nothing is left
// open.
func (p part) ask(t *testing.T, ctx context.Context, q prompt.Question) (prompt.Answer, error) {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if q.Text == "" {
		q.Text = "Enter PIN for id_ecdsa"
	}
	w := pinentry{Settings: prompt.Settings{Timeout: p.timeout, Grace: 50 * time.Millisecond}}
	if p.timeout == 0 {
		w.Timeout = time.Hour
	}
	if p.Do == "exit" {
		w.Grace = time.Minute // or its complaint may not be read in time
	}
	ctx, done := w.Limit(ctx)
	defer done()
	before := descriptors(t)
	answer, err := w.run(ctx, self(t), []string{partVariable + "=" + string(text)}, q, nil)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	return answer, err
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// getPIN asks the fake for a PIN.
func (p part) getPIN(t *testing.T) ([]byte, error) {
	t.Helper()
	answer, err := p.ask(t, t.Context(), prompt.Question{Kind: prompt.PIN})
	return answer.PIN, err
}

func isUnusable(err error) bool {
	_, unusable := errors.AsType[*prompt.UnusableError](err)
	return unusable
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// commands returns what the fake was told.
func commands(t *testing.T, log string) []string {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}
