package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tracer runs a program and counts its system calls that change something below a
// directory. It kills the program at the entry of one of them, or makes that call fail.
type tracer struct {
	below string
	at    int           // the number of the call to stop at, from 1; 0 for none
	errno syscall.Errno // the error that the call returns; 0 kills the program

	count   int          // calls so far
	call    string       // the name of the call that it stopped at
	pending map[int]bool // threads whose current call must return errno
}

// These constants of linux/ptrace.h are missing from package unix.
const (
	ptraceGetSyscallInfo = 0x420e
	syscallEntry         = 1
)

// syscallInfo is struct ptrace_syscall_info at the entry of a call.
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	arch   uint32
	ip, sp uint64
	nr     uint64
	args   [6]uint64
	_      uint64
}

// writingCalls are the system calls that write, with the arguments that name files, as
// pairs of directory and path. A call without pairs has a descriptor first.
var writingCalls = map[uint64]struct {
	name  string
	paths [][2]int
}{
	unix.SYS_OPENAT:    {"openat", [][2]int{{0, 1}}},
	unix.SYS_LINKAT:    {"linkat", [][2]int{{0, 1}, {2, 3}}},
	unix.SYS_RENAMEAT:  {"renameat", [][2]int{{0, 1}, {2, 3}}},
	unix.SYS_RENAMEAT2: {"renameat2", [][2]int{{0, 1}, {2, 3}}},
	unix.SYS_UNLINKAT:  {"unlinkat", [][2]int{{0, 1}}},
	unix.SYS_MKDIRAT:   {"mkdirat", [][2]int{{0, 1}}},
	unix.SYS_SYMLINKAT: {"symlinkat", [][2]int{{1, 2}}},
	unix.SYS_FCHMODAT:  {"fchmodat", [][2]int{{0, 1}}},
	unix.SYS_FCHMODAT2: {"fchmodat2", [][2]int{{0, 1}}},
	unix.SYS_WRITE:     {"write", nil},
	unix.SYS_PWRITE64:  {"pwrite64", nil},
	unix.SYS_FSYNC:     {"fsync", nil},
	unix.SYS_FDATASYNC: {"fdatasync", nil},
	unix.SYS_FTRUNCATE: {"ftruncate", nil},
	unix.SYS_FCHMOD:    {"fchmod", nil},
}

// run runs the program to its end. It traces the program's threads, but not the
// programs that it starts.
func (tr *tracer) run(t *testing.T, cmd *exec.Cmd) unix.WaitStatus {
	t.Helper()
	runtime.LockOSThread() // the tracer is a thread, not a process
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Skipf("tracing is not allowed here: %v", err)
	}
	defer cmd.Process.Release()
	tr.pending = make(map[int]bool)
	main := cmd.Process.Pid
	var status unix.WaitStatus
	if _, err := unix.Wait4(main, &status, 0, nil); err != nil || !status.Stopped() {
		t.Fatalf("waiting for the program's start: %v, %v", status, err)
	}
	// These options trace new threads, but not new processes.
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(main, options); err != nil {
		t.Fatal(err)
	}
	for tid := main; ; {
		tr.goOn(main, tid, status)
		var err error
		// Wait only for its process group: other tests wait for other children.
		for tid, err = unix.Wait4(-main, &status, unix.WALL|unix.WNOTHREAD, nil); err == unix.EINTR; {
			tid, err = unix.Wait4(-main, &status, unix.WALL|unix.WNOTHREAD, nil)
		}
		if err != nil {
			t.Fatalf("waiting for the program: %v", err)
		}
		if tid == main && (status.Exited() || status.Signaled()) {
			return status
		}
	}
}

// goOn handles a stop of a thread and continues it. It ignores the error if the thread
// was killed in the meantime.
func (tr *tracer) goOn(main, tid int, status unix.WaitStatus) {
	if !status.Stopped() {
		return
	}
	signal := 0
	switch sig := status.StopSignal(); {
	case sig == unix.SIGTRAP|0x80:
		tr.atCall(main, tid)
	case sig != unix.SIGTRAP && sig != unix.SIGSTOP: // a new thread begins with SIGSTOP
		signal = int(sig)
	}
	_ = unix.PtraceSyscall(tid, signal)
}

// atCall handles the entry or the exit of a system call.
func (tr *tracer) atCall(main, tid int) {
	var info syscallInfo
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return
	}
	if info.op != syscallEntry {
		if tr.pending[tid] {
			delete(tr.pending, tid)
			setRegister(tid, func(r *unix.PtraceRegs) { r.Rax = -uint64(tr.errno) })
		}
		return
	}
	if !tr.matches(tid, &info) {
		return
	}
	if tr.count++; tr.count != tr.at {
		return
	}
	tr.call = writingCalls[info.nr].name
	if tr.errno == 0 {
		_ = unix.Kill(main, unix.SIGKILL)
		return
	}
	tr.pending[tid] = true
	setRegister(tid, func(r *unix.PtraceRegs) { r.Orig_rax = ^uint64(0) }) // skips the call
}

// setRegister changes the registers of a thread.
func setRegister(tid int, change func(*unix.PtraceRegs)) {
	var r unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &r) == nil {
		change(&r)
		_ = unix.PtraceSetRegs(tid, &r)
	}
}

// matches reports whether a call changes something below the directory.
func (tr *tracer) matches(tid int, info *syscallInfo) bool {
	call, ok := writingCalls[info.nr]
	if !ok {
		return false
	}
	const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	if info.nr == unix.SYS_OPENAT && info.args[2]&writing == 0 {
		return false
	}
	if call.paths == nil {
		return tr.inside(descriptor(tid, int32(info.args[0])))
	}
	for _, p := range call.paths {
		path := readString(tid, info.args[p[1]])
		if !filepath.IsAbs(path) {
			path = filepath.Join(descriptor(tid, int32(info.args[p[0]])), path)
		}
		if tr.inside(path) {
			return true
		}
	}
	return false
}

// inside reports whether path is below the directory.
func (tr *tracer) inside(path string) bool { return strings.HasPrefix(path, tr.below+"/") }

// descriptor returns the path of an open file or directory of a thread.
func descriptor(tid int, fd int32) string {
	name := "/proc/" + strconv.Itoa(tid) + "/cwd"
	if fd != unix.AT_FDCWD {
		name = "/proc/" + strconv.Itoa(tid) + "/fd/" + strconv.Itoa(int(fd))
	}
	path, _ := os.Readlink(name)
	return path
}

// readString reads a string from the program's memory.
func readString(tid int, addr uint64) string {
	var text []byte
	for len(text) < unix.PathMax {
		word := make([]byte, 8)
		if _, err := unix.PtracePeekData(tid, uintptr(addr)+uintptr(len(text)), word); err != nil {
			return ""
		}
		for _, c := range word {
			if c == 0 {
				return string(text)
			}
			text = append(text, c)
		}
	}
	return string(text)
}
