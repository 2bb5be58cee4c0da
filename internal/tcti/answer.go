package tcti

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxMessage bounds commands and answers. The kernel's driver (TPM_BUFSIZE) and the
// reference implementation (MAX_COMMAND_SIZE) have buffers of this size.
const maxMessage = 4096

// headerSize is the size of the header of commands and answers: tag (2 octets),
// size of the whole (4), command code or return code (4). TPM 2.0 Part 1, 18.
const headerSize = 10

// Tags of answers, TPM 2.0 Part 2, 6.9. A TPM 1.2 puts tagTPM12 before every answer.
// TPM 2.0 has it, as TPM_ST_RSP_COMMAND, only for a command with a bad tag, and we
// send none.
const (
	tagNoSessions = 0x8001
	tagSessions   = 0x8002
	tagTPM12      = 0x00c4
)

// framing is how a socket carries commands and answers. swtpm's framing, the zero
// value, adds nothing to them.
type framing struct {
	simulator bool
}

// margin returns how many octets there are before an answer, and after it.
func (f framing) margin() int {
	if f.simulator {
		return 4
	}
	return 0
}

// frame returns what is sent for a command. To the simulator that is: send (4),
// locality (1), size (4), command.
func (f framing) frame(command []byte) []byte {
	if !f.simulator {
		return command
	}
	b := binary.BigEndian.AppendUint32(nil, mssimSend)
	b = append(b, 0) // locality 0, that of the operating system
	b = binary.BigEndian.AppendUint32(b, uint32(len(command)))
	return append(b, command...)
}

// need returns the size of the whole frame of an answer whose beginning is got. As
// long as that is unknown, it returns more than len(got).
func (f framing) need(got []byte) (int, error) {
	m := f.margin()
	if len(got) < m+headerSize {
		return m + headerSize, nil
	}
	n := binary.BigEndian.Uint32(got[m+2:])
	if n < headerSize || n > maxMessage {
		return 0, fmt.Errorf("answer that claims to have %d octets", n)
	}
	return m + int(n) + m, nil
}

// open returns the answer in a whole frame. The simulator's frame is: size (4),
// answer, zero (4).
func (f framing) open(frame []byte) ([]byte, error) {
	if !f.simulator {
		return frame, nil
	}
	answer, end := frame[4:len(frame)-4], frame[len(frame)-4:]
	if n := binary.BigEndian.Uint32(frame); int(n) != len(answer) {
		return nil, fmt.Errorf("the simulator announced %d octets, but the answer has %d", n, len(answer))
	}
	if status := binary.BigEndian.Uint32(end); status != 0 {
		return nil, fmt.Errorf("the simulator ended the answer with %d instead of 0", status)
	}
	return answer, nil
}

// readAnswer reads one answer. An octet beyond it that has already come is an error,
// because it answers no command.
func readAnswer(r io.Reader, f framing) ([]byte, error) {
	// One octet more than the longest frame, to see what comes after it.
	buf := make([]byte, maxMessage+2*f.margin()+1)
	got := 0
	for {
		need, err := f.need(buf[:got])
		if err != nil {
			return nil, err
		}
		if got == need {
			return f.open(buf[:got])
		}
		if got > need {
			return nil, errors.New("octets after the answer")
		}
		n, err := r.Read(buf[got:])
		got += n
		if n == 0 && err == io.EOF {
			return nil, fmt.Errorf("hung up after %d octets of the answer: %w", got, io.ErrUnexpectedEOF)
		}
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// checkAnswer checks the size and the tag of an answer.
func checkAnswer(answer []byte) error {
	if len(answer) < headerSize {
		return fmt.Errorf("answer of %d octets, less than a header", len(answer))
	}
	if n := binary.BigEndian.Uint32(answer[2:]); uint64(n) != uint64(len(answer)) {
		return fmt.Errorf("answer of %d octets that claims to have %d", len(answer), n)
	}
	switch tag := binary.BigEndian.Uint16(answer); tag {
	case tagNoSessions, tagSessions:
		return nil
	case tagTPM12:
		return ErrTPM12
	default:
		return fmt.Errorf("answer with the tag %#04x, which no TPM uses", tag)
	}
}
