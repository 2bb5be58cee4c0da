package tcti

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Tags of answers, TPM 2.0 Part 2, 6.9. tagTPM12 is what a TPM 1.2 puts before
// every answer; TPM 2.0 has it, as TPM_ST_RSP_COMMAND, for a command with a bad
// tag only, and we send none.
const (
	tagNoSessions = 0x8001
	tagSessions   = 0x8002
	tagTPM12      = 0x00c4
)

// framing is how a stream carries commands and answers.
type framing interface {
	// frame returns what is written for a command.
	frame(command []byte) []byte
	// need returns how long the whole frame of an answer is, going by the
	// octets that are here, or more than those as long as that is not known.
	need(got []byte) (int, error)
	// open returns the answer in a whole frame.
	open(frame []byte) ([]byte, error)
}

// rawFraming is swtpm's: the messages themselves, one after the other.
type rawFraming struct{}

func (rawFraming) frame(command []byte) []byte { return command }

func (rawFraming) need(got []byte) (int, error) {
	if len(got) < headerSize {
		return headerSize, nil
	}
	return answerSize(binary.BigEndian.Uint32(got[2:]))
}

func (rawFraming) open(frame []byte) ([]byte, error) { return frame, nil }

// answerSize checks the size that the other side announces.
func answerSize(n uint32) (int, error) {
	if n < headerSize || n > maxMessage {
		return 0, fmt.Errorf("answer that says it has %d octets", n)
	}
	return int(n), nil
}

// frameBuffer is the size of the buffer for readAnswer: the longest frame and
// one octet more, so that what comes after the longest is seen too.
const frameBuffer = maxMessage + mssimOverhead + 1

// readAnswer reads one answer and nothing else: an octet beyond it that is
// already here is an error, as nobody asked for it. buf has frameBuffer octets,
// the answer is a copy.
func readAnswer(r io.Reader, f framing, buf []byte) ([]byte, error) {
	got := 0
	for {
		need, err := f.need(buf[:got])
		if err != nil {
			return nil, err
		}
		if got == need {
			answer, err := f.open(buf[:got])
			return bytes.Clone(answer), err
		}
		if got > need {
			return nil, errors.New("octets after the answer")
		}
		n, err := r.Read(buf[got:])
		got += n
		if n == 0 && err != nil {
			return nil, endOfAnswer(got, err)
		}
	}
}

// endOfAnswer words the error that ended an answer too early.
func endOfAnswer(got int, err error) error {
	switch {
	case err != io.EOF:
		return err
	case got == 0:
		return fmt.Errorf("hung up instead of answering: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("hung up after %d octets of the answer: %w", got, io.ErrUnexpectedEOF)
}

// checkAnswer looks at what every answer has in common.
func checkAnswer(answer []byte) error {
	if len(answer) < headerSize {
		return fmt.Errorf("answer of %d octets, less than a header", len(answer))
	}
	if n := binary.BigEndian.Uint32(answer[2:]); uint64(n) != uint64(len(answer)) {
		return fmt.Errorf("answer of %d octets that says it has %d", len(answer), n)
	}
	switch tag := binary.BigEndian.Uint16(answer); tag {
	case tagNoSessions, tagSessions:
		return nil
	case tagTPM12:
		return ErrTPM12
	default:
		return fmt.Errorf("answer with the tag %#04x, which is none of a TPM", tag)
	}
}
