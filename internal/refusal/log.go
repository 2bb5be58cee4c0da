package refusal

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// How many refusals a Log keeps, and the lengths of their texts in bytes: all of
// them fit into one message of the agent protocol.
const (
	maxRecords = 64
	maxText    = 512
	maxDetail  = 1024
)

// A Record is a request that was refused.
type Record struct {
	Time        time.Time // in seconds
	Request     string    // "sign", …
	Key         string    // its name; "" if there was none
	Fingerprint string    // SHA256:…; "" if there was none
	Cause       string    // a Cause
	Detail      string    // more about it; may be ""
	PID         int       // of the client; -1: unknown
	Chain       []string  // the names of the processes that led to the request, see peer.Peer.Chain
}

// A Log keeps the latest refusals. The zero value is empty.
type Log struct {
	mu  sync.Mutex
	all []Record
}

// Add keeps a refusal, and drops the oldest if there are too many.
func (l *Log) Add(r Record) {
	for _, text := range []*string{&r.Request, &r.Key, &r.Fingerprint, &r.Cause} {
		*text = shortened(*text, maxText)
	}
	r.Detail = shortened(r.Detail, maxDetail)
	for i, name := range r.Chain {
		r.Chain[i] = shortened(name, maxText)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == maxRecords {
		l.all = slices.Delete(l.all, 0, 1)
	}
	l.all = append(l.all, r)
}

// All returns the refusals in the order in which they happened.
func (l *Log) All() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// shortened returns s as a string of the protocol with at most limit bytes.
func shortened(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
