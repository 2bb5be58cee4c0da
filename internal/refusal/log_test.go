package refusal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestLog checks that a Log keeps the latest refusals in order.
func TestLog(t *testing.T) {
	t.Parallel()
	var l Log
	for i := range maxRecords + 3 {
		l.Add(Record{Request: fmt.Sprint(i)})
	}
	all := l.All()
	if len(all) != maxRecords || all[0].Request != "3" || all[maxRecords-1].Request != fmt.Sprint(maxRecords+2) {
		t.Errorf("%d records, %+v to %+v", len(all), all[0], all[len(all)-1])
	}
	all[0].Request = "changed"
	if l.All()[0].Request == "changed" {
		t.Error("a caller can change what is kept")
	}
}

// TestLogShortens checks that long texts are cut, and that what is no text is
// replaced.
func TestLogShortens(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"x", "é", "a\xff", "\x00"} {
		long := strings.Repeat(text, 10_000)
		var l Log
		l.Add(Record{Request: long, Key: long, Fingerprint: long, Cause: long, Detail: long, Chain: []string{long}})
		r := l.All()[0]
		for _, short := range slices.Concat([]string{r.Request, r.Key, r.Fingerprint, r.Cause}, r.Chain) {
			if len(short) < maxText-4 || len(short) > maxText+len("…") || !strings.HasSuffix(short, "…") {
				t.Errorf("%q: %d bytes, %q", text, len(short), short)
			}
			if strings.ToValidUTF8(short, "") != short || strings.Contains(short, "\x00") {
				t.Errorf("%q: %q is no text", text, short)
			}
		}
		if len(r.Detail) < maxDetail-4 || len(r.Detail) > maxDetail+len("…") {
			t.Errorf("%q: a detail of %d bytes", text, len(r.Detail))
		}
	}
	detail := strings.Repeat("whole", maxDetail/5)
	var l Log
	l.Add(Record{Detail: detail})
	if got := l.All()[0].Detail; got != detail {
		t.Errorf("a detail of %d bytes became %q", len(detail), got)
	}
}

// TestBecause checks which cause an error gets.
func TestBecause(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	plain, refused := errors.New("broken"), New(Removed, nil)
	for _, test := range []struct {
		ctx  context.Context
		err  error
		want Cause
	}{
		{t.Context(), plain, Key},
		{t.Context(), refused, Removed},
		{t.Context(), fmt.Errorf("signing: %w", refused), Removed},
		{ended, plain, HungUp},
		{ended, refused, HungUp},
	} {
		if got := Because(test.ctx, Key, test.err); got.Cause != test.want {
			t.Errorf("%v: %v, want %q", test.err, got, test.want)
		}
	}
}
