package pinentry

import (
	"bufio"
	"encoding/json"
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
)

// This test program is its own pinentry: run with the variable set, it plays
// the part that the variable describes.
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

// part is how a fake pinentry behaves. Answers are sent as they are; what has
// none is answered with OK.
type part struct {
	Greeting string            // "OK Pleased to meet you\n", if it is empty
	Answers  map[string]string // by the beginning of the command
	Log      string            // the file that gets the commands
	Alive    string            // a FIFO that is held open for writing by all that runs

	Do         string // what it does at the command At: one of the words of act
	At         string // "START": instead of the greeting
	IgnoreTERM bool
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
		// Through dup(2), which leaves it open in the programs that this one starts.
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
	case "close": // its end of the dialogue, and lives
		os.Stdout.Close()
		time.Sleep(time.Hour)
	case "endless": // never an end of the line
		_, _ = io.Copy(os.Stdout, endless("x"))
	case "comments":
		_, _ = io.Copy(os.Stdout, endless("# nothing new\n"))
	case "data":
		_, _ = io.Copy(os.Stdout, endless("D 31415926535897932384\n"))
	case "long line":
		fmt.Println("D " + strings.Repeat("x", 1<<20))
	case "children": // which do not go, either
		startStubborn()
		p.hang()
	default:
		panic(p.Do)
	}
}

// ownPIN is a PIN, each octet changed by mask: a program that must not hold it
// can know it so.
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

// hang says that it does, and does.
func (p part) hang() {
	p.note("hangs")
	time.Sleep(time.Hour)
}

// startStubborn starts processes that hold what is open here.
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

// endless is a reader of something again and again.
type endless string

func (e endless) Read(buf []byte) (int, error) {
	n := 0
	for n+len(e) <= len(buf) {
		n += copy(buf[n:], e)
	}
	return n, nil
}

// dialog is a dialog that the fake takes part in.
func (p part) dialog(t *testing.T) Dialog {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	grace := 50 * time.Millisecond
	if p.Do == "exit" {
		grace = time.Minute // or what it had to say may not be read in time
	}
	return Dialog{
		Description: "Enter PIN for id_ecdsa",
		Environ:     []string{partVariable + "=" + string(text)},
		Grace:       grace,
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// getPIN asks the fake, and checks that nothing is left open.
func (p part) getPIN(t *testing.T) ([]byte, error) {
	t.Helper()
	before := descriptors(t)
	pin, err := GetPIN(t.Context(), self(t), p.dialog(t))
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	return pin, err
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// commands is what the fake was told.
func commands(t *testing.T, log string) []string {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}
