package control

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
)

// causes are those that package agent has, out of its source.
func causes(t *testing.T) (all []refusal.Cause) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../refusal/refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Cause" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, refusal.Cause(text))
		return true
	})
	if len(all) < 20 {
		t.Fatalf("found only %q", all)
	}
	return all
}

// TestEveryCauseIsKnown: what can be done about each cause has been thought of.
func TestEveryCauseIsKnown(t *testing.T) {
	t.Parallel()
	// What to do follows from these, or there is nothing to do.
	speakForThemselves := []refusal.Cause{refusal.HungUp}
	for _, cause := range causes(t) {
		if hint := causeHints[cause]; (hint == "") != slices.Contains(speakForThemselves, cause) {
			t.Errorf("%q: hint %q", cause, hint)
		}
	}
}

func printed(t *testing.T, refusals ...refusal.Record) string {
	t.Helper()
	var b bytes.Buffer
	if err := printRefusals(&b, refusals); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhyPrints(t *testing.T) {
	t.Parallel()
	when := time.Date(2026, 11, 21, 14, 3, 7, 0, time.Local)
	got := printed(t,
		refusal.Record{Time: when, Request: "sign", Key: "/home/me/.ssh/work.tpm", Fingerprint: "SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8", Cause: "wrong PIN", PID: 4711, Chain: []string{"git", "ssh"}},
		refusal.Record{Time: when.Add(time.Hour), Request: "lock", Cause: "an empty password locks nothing", PID: -1},
		refusal.Record{Time: when.Add(2 * time.Hour), Request: "sign", Fingerprint: "SHA256:x", Cause: "key could not sign", Detail: "TPM2_Load:\nthe TPM is on fire", PID: 1},
	)
	want := `2026-11-21 14:03:07  sign: wrong PIN
  key      /home/me/.ssh/work.tpm
           SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8
  by       git < ssh (process 4711)
  hint     tpm-agent unlock /home/me/.ssh/work.tpm asks again and shows how
           many tries are left

2026-11-21 15:03:07  lock: an empty password locks nothing

2026-11-21 16:03:07  sign: key could not sign
  key      SHA256:x
  by       process 1
  because  TPM2_Load:; the TPM is on fire
  hint     tpm-agent inspect FILE shows whether this TPM can use the key
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestWhyFits: no line is longer than a terminal is wide, unless a word is.
func TestWhyFits(t *testing.T) {
	t.Parallel()
	for _, cause := range causes(t) {
		got := printed(t, refusal.Record{Request: "sign", Key: "/home/me/.ssh/work.tpm", Cause: string(cause), Detail: strings.Repeat("why not ", 50), PID: 4711, Chain: []string{"ssh-keygen"}})
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// TestWhyIsHarmless: what others have chosen steers no terminal, and cannot
// look like lines of ours.
func TestWhyIsHarmless(t *testing.T) {
	t.Parallel()
	const evil = "x\x1b[2J\u202egnp.\r\n  hint     rm -rf ~\u0085\u2028\x07"
	r := refusal.Record{Time: time.Unix(0, 0), Request: evil, Key: evil, Fingerprint: evil, Cause: evil, Detail: evil, PID: 1, Chain: []string{evil, evil}}
	got := printed(t, r)
	if strings.ContainsAny(got, "\x1b\r\x07\u202e\u0085\u2028") || strings.Count(got, "\n  hint") != 0 {
		t.Errorf("%q", got)
	}
	r.Cause = string(refusal.WrongAuth)
	if got := refusalHint(r); strings.Contains(got, "rm") && !strings.Contains(got, "'") || strings.ContainsAny(got, "\x1b\n\r") {
		t.Errorf("%q", got)
	}
	var b bytes.Buffer
	if err := writeRefusals(&b, []refusal.Record{r}); err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal(b.Bytes(), &all); err != nil || len(all) != 1 || strings.ContainsAny(b.String(), "\x1b\r\x07\u202e") {
		t.Errorf("%v: %q", err, b.String())
	}
}
