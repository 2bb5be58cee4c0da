package prompt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// process is one that may have a terminal.
type process struct{ peer.Stat }

// readProcess reads /proc/PID/stat.
func readProcess(pid int) (process, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	stat, err := peer.Parse(line)
	if err == nil && stat.PID != pid {
		err = errors.New("it is of another process")
	}
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return process{stat}, nil
}

// terminal is the device number of the controlling terminal; 0: it has none.
func (p process) terminal() uint64 { return deviceNumber(p.Terminal) }

// deviceNumber makes a device number of the kernel's 32 bits: minor in 31..20
// and 7..0, major in 19..8.
func deviceNumber(packed uint32) uint64 {
	return unix.Mkdev(packed>>8&0xfff, packed&0xff|packed>>12&0xfff00)
}

// inForeground says whether what is typed on its terminal is for this process.
func (p process) inForeground() bool {
	return p.Terminal != 0 && p.Group == p.Foreground
}

// ownClient checks that a client is a process of this user on this machine, so
// that what /proc says of it can be relied upon as much as on the user.
func ownClient(q agent.Question) error {
	us := os.Geteuid()
	switch {
	case q.Peer.PID <= 0:
		return errors.New("the client is not known")
	case q.Peer.UID != us:
		return errors.New("the client is another user's")
	case q.Use.Forwarded:
		return errors.New("the request was forwarded from another machine")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", q.Peer.PID))
	if err != nil {
		return errors.New("the client has gone")
	}
	if !ownedBy(status, us) {
		return errors.New("the client is another user's")
	}
	return nil
}

// ownedBy says whether all the user ids in a proc_pid_status(5) are uid.
func ownedBy(status []byte, uid int) bool {
	for line := range bytes.Lines(status) {
		ids, found := bytes.CutPrefix(line, []byte("Uid:"))
		if !found {
			continue
		}
		fields := strings.Fields(string(ids))
		for _, id := range fields {
			if id != strconv.Itoa(uid) {
				return false
			}
		}
		return len(fields) == 4
	}
	return false
}
