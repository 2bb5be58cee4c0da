package tcti

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// answer returns an answer of n octets that claims to have size octets.
func answer(n int, size uint32) []byte {
	b := make([]byte, max(n, headerSize))
	binary.BigEndian.PutUint16(b, tagNoSessions)
	binary.BigEndian.PutUint32(b[2:], size)
	return b[:n]
}

// boxed returns the frame of a simulator, with that size before the answer and that
// status after it.
func boxed(a []byte, size, status uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, size)
	return binary.BigEndian.AppendUint32(append(b, a...), status)
}

func TestReadAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		simulator bool
		in        []byte
		want      []byte // nil: an error
	}{
		"shortest":             {false, answer(10, 10), answer(10, 10)},
		"longest":              {false, answer(4096, 4096), answer(4096, 4096)},
		"too long":             {false, answer(4097, 4097), nil},
		"claims 9":             {false, answer(10, 9), nil},
		"claims 2^32-1":        {false, answer(10, 1<<32-1), nil},
		"nothing":              {false, nil, nil},
		"half a header":        {false, answer(5, 10), nil},
		"one octet missing":    {false, answer(19, 20), nil},
		"mssim":                {true, boxed(answer(12, 12), 12, 0), answer(12, 12)},
		"mssim longest":        {true, boxed(answer(4096, 4096), 4096, 0), answer(4096, 4096)},
		"mssim too long":       {true, boxed(answer(4097, 4097), 4097, 0), nil},
		"mssim empty":          {true, boxed(nil, 0, 0), nil},
		"mssim status":         {true, boxed(answer(12, 12), 12, 1), nil},
		"mssim without end":    {true, boxed(answer(12, 12), 12, 0)[:16], nil},
		"mssim size too short": {true, boxed(answer(12, 12), 11, 0), nil},
		"mssim size too long":  {true, boxed(answer(12, 12), 1<<32-1, 0), nil},
	} {
		for how, r := range map[string]io.Reader{
			"at once":      bytes.NewReader(c.in),
			"in octets":    iotest.OneByteReader(bytes.NewReader(c.in)),
			"with the EOF": iotest.DataErrReader(bytes.NewReader(c.in)),
		} {
			got, err := readAnswer(r, c.simulator)
			if (err == nil) != (c.want != nil) || !bytes.Equal(got, c.want) {
				t.Errorf("%s, %s: %x, %v", name, how, got, err)
			}
		}
	}
	more := bytes.NewReader(append(answer(12, 12), 0))
	if _, err := readAnswer(more, false); err != nil || more.Len() != 1 {
		t.Errorf("%d octets are left after the answer, want 1 (%v)", more.Len(), err)
	}
}

func TestReadAnswerErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, head := range [][]byte{nil, answer(3, 10), answer(12, 20)} {
		r := io.MultiReader(bytes.NewReader(head), iotest.ErrReader(broken))
		if _, err := readAnswer(r, false); !errors.Is(err, broken) {
			t.Errorf("after %d octets: %v", len(head), err)
		}
		if _, err := readAnswer(bytes.NewReader(head), false); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("end after %d octets: %v", len(head), err)
		}
	}
}

func TestCheckAnswer(t *testing.T) {
	t.Parallel()
	tagged := func(tag uint16) []byte {
		b := answer(10, 10)
		binary.BigEndian.PutUint16(b, tag)
		return b
	}
	for _, good := range []uint16{tagNoSessions, tagSessions} {
		if err := checkAnswer(tagged(good)); err != nil {
			t.Errorf("tag %#x: %v", good, err)
		}
	}
	if err := checkAnswer(tagged(tagTPM12)); !errors.Is(err, ErrTPM12) {
		t.Errorf("tag of a TPM 1.2: %v", err)
	}
	for _, bad := range [][]byte{nil, tagged(0), tagged(0x8003), answer(9, 9), answer(12, 10), answer(10, 12)} {
		if err := checkAnswer(bad); err == nil || errors.Is(err, ErrTPM12) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

// FuzzReadAnswer feeds any octets to readAnswer, in pieces of any size.
func FuzzReadAnswer(f *testing.F) {
	f.Add(answer(12, 12), uint8(0), false)
	f.Add(answer(12, 13), uint8(1), false)
	f.Add(answer(4096, 4096), uint8(0), false)
	f.Add(boxed(answer(12, 12), 12, 0), uint8(3), true)
	f.Add(boxed(answer(12, 12), 12, 9), uint8(0), true)
	f.Fuzz(func(t *testing.T, in []byte, piece uint8, simulator bool) {
		margin := 0
		if simulator {
			margin = 4
		}
		got, err := readAnswer(&pieces{in, int(piece)}, simulator)
		if err != nil {
			if len(got) != 0 {
				t.Errorf("an answer beside the error %v", err)
			}
			return
		}
		if len(got) < headerSize || len(got) > maxMessage || len(got)+2*margin > len(in) {
			t.Fatalf("answer of %d octets from %d", len(got), len(in))
		}
		if !bytes.Equal(got, in[margin:][:len(got)]) {
			t.Error("the answer is not what was sent")
		}
		if int(binary.BigEndian.Uint32(got[2:])) != len(got) {
			t.Error("an answer with a wrong size is accepted")
		}
	})
}

// pieces is a reader that returns n octets at a time, or all at once for 0.
type pieces struct {
	rest []byte
	n    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	if p.n > 0 && len(b) > p.n {
		b = b[:p.n]
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
