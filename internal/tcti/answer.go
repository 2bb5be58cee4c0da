package tcti

import (
	"encoding/binary"
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

// readAnswer reads one answer, and nothing beyond it. A simulator's has its size
// before it and a zero after it, four octets each.
func readAnswer(r io.Reader, simulator bool) ([]byte, error) {
	margin := 0
	if simulator {
		margin = 4
	}
	frame := make([]byte, maxMessage+2*margin)
	head := margin + headerSize
	if n, err := io.ReadFull(r, frame[:head]); err != nil {
		return nil, cutOff(n, err)
	}
	size := binary.BigEndian.Uint32(frame[margin+2:])
	if size < headerSize || size > maxMessage {
		return nil, fmt.Errorf("answer that claims to have %d octets", size)
	}
	frame = frame[:margin+int(size)+margin]
	if n, err := io.ReadFull(r, frame[head:]); err != nil {
		return nil, cutOff(head+n, err)
	}
	answer := frame[margin : margin+int(size)]
	if simulator {
		if n := binary.BigEndian.Uint32(frame); n != size {
			return nil, fmt.Errorf("the simulator announced %d octets, but the answer has %d", n, size)
		}
		if status := binary.BigEndian.Uint32(frame[margin+int(size):]); status != 0 {
			return nil, fmt.Errorf("the simulator ended the answer with %d instead of 0", status)
		}
	}
	return answer, nil
}

// cutOff returns the error for an answer that ended after n octets.
func cutOff(n int, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("hung up after %d octets of the answer: %w", n, io.ErrUnexpectedEOF)
	}
	return err
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
