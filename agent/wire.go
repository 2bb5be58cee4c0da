package agent

import (
	"encoding/binary"
	"errors"
)

// errShort is a message that ends inside a field.
var errShort = errors.New("message ends inside a field")

// wire reads the data types of RFC 4251, section 5, one after the other, where
// a message has parts that only what came before them tells how to read. After
// the first field that is not there all others are empty and err says so. What
// it returns is part of the message, not a copy.
type wire struct {
	rest []byte
	err  error
}

func (w *wire) take(n int) []byte {
	if w.err == nil && len(w.rest) < n {
		w.err = errShort
	}
	if w.err != nil {
		return nil
	}
	b := w.rest[:n:n]
	w.rest = w.rest[n:]
	return b
}

func (w *wire) byte() byte {
	if b := w.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (w *wire) uint32() uint32 {
	if b := w.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (w *wire) string() []byte {
	n := w.uint32()
	if w.err == nil && uint64(n) > uint64(len(w.rest)) {
		w.err = errShort
	}
	if w.err != nil {
		return nil
	}
	return w.take(int(n))
}

// text is a string that is text: see cString.
func (w *wire) text() string {
	s, err := cString(string(w.string()))
	if w.err == nil {
		w.err = err
	}
	if w.err != nil {
		return ""
	}
	return s
}

// done says that there is nothing more to read.
func (w *wire) done() bool { return w.err != nil || len(w.rest) == 0 }

func (w *wire) uint64() uint64 {
	if b := w.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// texts is a string that has texts in it, one after the other.
func (w *wire) texts() (all []string) {
	list := &wire{rest: w.string()}
	for !list.done() {
		all = append(all, list.text())
	}
	if w.err == nil {
		w.err = list.err
	}
	return all
}
