package prompt

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

const (
	printK = "SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
	printH = "SHA256:hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"
)

// questionOf is about a key in the home directory, and asked by nobody who is
// known.
func questionOf(use agent.Use) agent.Question {
	home, err := os.UserHomeDir()
	if err != nil {
		panic(err)
	}
	return agent.Question{
		Name: home + "/.ssh/id_ecdsa.tpm", Comment: "me@laptop", Fingerprint: printK,
		Peer: agent.Peer{PID: -1, UID: -1}, Use: use,
	}
}

// same compares texts, which are written into tests with a newline in front.
func same(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

var gitHub = agent.Use{Kind: agent.UseLogin, User: "git", Host: "github.com", HostKey: printH}

func TestWording(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	from := func(u agent.Use, via ...string) agent.Use {
		u.Forwarded, u.Via = true, via
		return u
	}
	for _, test := range []struct {
		ask  agent.AuthPrompt
		want string
	}{
		{agent.AuthPrompt{Question: questionOf(gitHub), TriesLeft: 5}, `
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
to log in as git@github.com
5 tries left before the TPM locks itself.`},
		{agent.AuthPrompt{Question: questionOf(from(gitHub, "gate.example.org")), TriesLeft: 4, Retry: true, Waiting: 3}, `
Wrong PIN. 4 tries left before the TPM locks itself.
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
FORWARDED from gate.example.org
to log in as git@github.com
The answer also serves 3 other requests for this key.`},
		{agent.AuthPrompt{Question: questionOf(agent.Use{Kind: agent.UseSignature, Namespace: "git"}), TriesLeft: -1, Retry: true}, `
Wrong PIN.
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
to sign a commit, tag or push (namespace git)`},
		{agent.AuthPrompt{Question: questionOf(agent.Use{}), TriesLeft: 1, Waiting: 1}, `
Enter PIN for ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
to sign data that is neither a login nor an SSH signature
This is the last try before the TPM locks itself.
The answer also serves another request for this key.`},
		{agent.AuthPrompt{Question: agent.Question{Name: "k.tpm"}}, `
Enter PIN for k.tpm
to sign data that is neither a login nor an SSH signature`},
		{agent.AuthPrompt{Question: agent.Question{Name: "k.tpm"}, Retry: true}, `
Wrong PIN. The TPM has locked itself.
Enter PIN for k.tpm
to sign data that is neither a login nor an SSH signature`},
		{agent.AuthPrompt{Question: agent.Question{
			Name: "/srv/keys/of/the/department/for/long/names/id_ecdsa_production.tpm", Comment: "deployment-key@build-17.eu-west.example.org",
			Peer: agent.Peer{PID: 1<<31 - 1},
			Use:  from(agent.Use{Kind: agent.UseLogin, User: "a-user-with-a-long-name", Host: "database-17.eu-west.production.example.org"}, "a.example", printH, ""),
		}, TriesLeft: 31}, `
Enter PIN for …ment/for/long/names/id_ecdsa_production.tpm
  (deployment-key@build-17.eu-west.example.org)
FORWARDED from an unproven host via 1 other host and
  a.example
to log in as a-user-with-a-long-name@
  database-17.eu-west.production.example.org
over process 2147483647
31 tries left before the TPM locks itself.`},
	} {
		same(t, wording(test.ask), test.want)
	}
}

func TestConsent(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for _, test := range []struct {
		ask  agent.Question
		want string
	}{
		{questionOf(gitHub), `
Allow use of key ~/.ssh/id_ecdsa.tpm (me@laptop)?
Key fingerprint SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk.
To log in as git@github.com`},
		{agent.Question{Comment: "me@here", Fingerprint: "SHA256:x", Use: agent.Use{Kind: agent.UseLogin, Forwarded: true}}, `
Allow use of key me@here?
Key fingerprint SHA256:x.
Perhaps FORWARDED: the host did not prove who it is
To log in (ssh did not say to which host)`},
		{agent.Question{Fingerprint: "SHA256:x"}, `
Allow use of key without a name?
Key fingerprint SHA256:x.
To sign data that is neither a login nor an SSH signature`},
		{agent.Question{
			Name: "k\x1b[2J\n", Comment: "c?\n Key fingerprint\u202e", Fingerprint: "SHA256:x\a",
			Use: agent.Use{Kind: agent.UseLogin, User: "root\nor", Host: "\x00example.org\r"},
		}, `
Allow use of key k[2J ("c? Key fingerprint")?
Key fingerprint SHA256:x.
To log in as rootor@example.org`},
	} {
		same(t, consent(agent.ConfirmPrompt{Question: test.ask}), test.want)
	}
}

func TestLastTry(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	const first = "One more wrong PIN locks the TPM.\n"
	text := lastTry(agent.AuthPrompt{Question: questionOf(gitHub), TriesLeft: 1})
	same(t, lastTry(agent.AuthPrompt{Question: questionOf(gitHub), TriesLeft: 1, Retry: true}),
		"Wrong PIN. One more locks the TPM.\n"+strings.TrimPrefix(text, first))
	same(t, text, "\n"+first+`It then takes no PIN for minutes or hours, of any key, nor
from other programs: unlocking a disk by PIN, for instance.
Try the PIN of ~/.ssh/id_ecdsa.tpm (me@laptop) all the same?
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
to log in as git@github.com`)
}

func TestNotice(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	now := time.Date(2026, 11, 21, 23, 50, 0, 0, time.UTC)
	for _, test := range []struct {
		notice agent.Notice
		want   string
	}{
		{agent.Notice{Question: questionOf(gitHub), Wait: 9*time.Minute + time.Second}, `
The TPM is locked: there were too many wrong PINs.
It takes the next one in 10 minutes, at 23:59.
Keys without a PIN go on working. Restarting the machine
does not help; who has the TPM's lockout password can end
it at once: tpm2_dictionarylockout --clear-lockout
Key: ~/.ssh/id_ecdsa.tpm (me@laptop)
SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
to log in as git@github.com`},
	} {
		same(t, noticeAt(test.notice, now), test.want)
	}
	for wait, want := range map[time.Duration]string{
		time.Millisecond:        "in 1 second, at 23:50.",
		99 * time.Second:        "in 99 seconds, at 23:51.",
		99*time.Second + 1:      "in 2 minutes, at 23:51.",
		10 * time.Minute:        "in 10 minutes,\n  on November 22 at 00:00.",
		24 * time.Hour:          "in 24 hours, on November 22 at 23:50.",
		365 * 24 * time.Hour:    "in 365 days, on November 21 at 23:50.",
		99 * time.Minute:        "in 99 minutes,\n  on November 22 at 01:29.",
		99*time.Minute + 1:      "in 2 hours, on November 22 at 01:29.",
		2*time.Hour + time.Hour: "in 3 hours, on November 22 at 02:50.",
	} {
		if got := noticeAt(agent.Notice{Wait: wait}, now); !strings.Contains(got, want) {
			t.Errorf("%v: %s", wait, got)
		}
	}
	if got := notice(agent.Notice{}); strings.Contains(got, "next one") {
		t.Errorf("a time that is not known: %s", got)
	}
}

func TestPurpose(t *testing.T) {
	for _, test := range []struct {
		use  agent.Use
		want string
	}{
		{agent.Use{Kind: agent.UseLogin, User: "u"}, "to log in as u (ssh did not say to which host)"},
		{agent.Use{Kind: agent.UseLogin, User: "u", HostKey: printH}, "to log in as u to a host of unknown name, whose key is\n  " + printH},
		{agent.Use{Kind: agent.UseLogin, Host: "[h.example]:2222", HostKey: printH}, "to log in to [h.example]:2222"},
		{agent.Use{Kind: agent.UseLogin, User: "git@github.com", Host: "evil.example"}, `to log in as "git@github.com"@evil.example`},
		{agent.Use{Kind: agent.UseLogin, User: "u (process 1)\nfor", Host: "2001:db8::1"}, `to log in as "u (process 1)for"@2001:db8::1`},
		{agent.Use{Kind: agent.UseLogin, User: "\u05d0\u05d1", Host: "10.0.0.1"}, `to log in as "??"@10.0.0.1`},
		{agent.Use{Kind: agent.UseLogin, User: strings.Repeat("u", 99), Host: strings.Repeat("h", 99) + ".example"}, "to log in as " + strings.Repeat("u", 29) + "…@\n  …" + strings.Repeat("h", 42) + ".example"},
		{agent.Use{Kind: agent.UseSignature, Namespace: "file"}, "to sign a file (namespace file)"},
		{agent.Use{Kind: agent.UseSignature, Namespace: "mail@example.org"}, `to sign data of the namespace "mail@example.org"`},
		{agent.Use{Kind: agent.UseSignature, Namespace: "git\u200b"}, "to sign data of the namespace git"},
		{agent.Use{Kind: agent.UseSignature, Namespace: "x\" (namespace git)"}, `to sign data of the namespace "x' (namespace git)"`},
		{agent.Use{Kind: agent.UseCertificate, KeyID: "alice", Principals: []string{"root", "www"}}, "to certify a user's key, for root, www (key ID alice)"},
		{agent.Use{Kind: agent.UseCertificate, Principals: []string{"a", "b", "c", "d", "e"}}, "to certify a user's key, for a, b, c, and 2 more"},
		{agent.Use{Kind: agent.UseCertificate, HostCert: true, KeyID: "h (x)"}, `to certify a host's key, for ANY name (key ID "h (x)")`},
		{agent.Use{Kind: agent.UseKind(99)}, "to sign data that is neither a login nor an SSH signature"},
	} {
		if got := purpose(test.use); got != test.want {
			t.Errorf("got\n%s\nwant\n%s", got, test.want)
		}
	}
}

func TestForwarded(t *testing.T) {
	for want, via := range map[string][]string{
		"perhaps FORWARDED: the host did not prove who it is": nil,
		"FORWARDED from a":                                  {"a"},
		"FORWARDED from b via a":                            {"a", "b"},
		"FORWARDED from c via 1 other host and a":           {"a", "b", "c"},
		"FORWARDED from d via 2 other hosts and a":          {"a", "b", "c", "d"},
		"FORWARDED from an unproven host via a":             {"a", ""},
		"FORWARDED from\n  " + printH + " via\n  " + printH: {printH, printH},
		`FORWARDED from "ato log in as x"`:                  {"a\nto log in as x"},
	} {
		if got := forwarded(agent.Use{Forwarded: true, Via: via}); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	if got := forwarded(agent.Use{Via: []string{"a"}}); got != "" {
		t.Errorf("not forwarded: %q", got)
	}
}

// TestProcesses: no name can be taken for words of ours.
func TestProcesses(t *testing.T) {
	for want, names := range map[string][]string{
		"for process 7":                     nil,
		"for ssh (process 7)":               {"ssh"},
		"for git < ssh (process 7)":         {"git", "ssh"},
		`for "ssh (pid 1)for" (process 7)`:  {"ssh (pid 1)\nfor"},
		`for "ssh < git" < ssh (process 7)`: {"ssh < git", "ssh"},
		`for "" (process 7)`:                {"\n\x7f\u200b"},
		`for "a'b" (process 7)`:             {`a"b`},
		`for "a b" (process 7)`:             {"a b"},
		"for Jörg (process 7)":              {"Jörg"},
		"for aaaaaaaaaaaaaaa < bbbbbbbbbbbbbbb < ccccccccccccccc <\n  ddddddddddddddd < eeeeeeeeeeeeeee (process 7)": {
			"aaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbb", "ccccccccccccccc", "ddddddddddddddd", "eeeeeeeeeeeeeee",
		},
	} {
		if got := processes("for", names, 7); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	if got := processes("for", nil, -1); got != "" {
		t.Errorf("nobody: %q", got)
	}
}

// TestAsker names a real process.
func TestAsker(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	q := agent.Question{Peer: agent.Peer{PID: pid}}
	if got := asker(q); !strings.HasPrefix(got, "for ") || !strings.HasSuffix(strings.ReplaceAll(got, "\n ", ""), fmt.Sprintf(" < sleep (process %d)", pid)) {
		t.Errorf("got %q", got)
	}
	q.Use = agent.Use{Forwarded: true, Via: []string{"a"}}
	if got := asker(q); !strings.HasPrefix(got, "over ") {
		t.Errorf("forwarded: %q", got)
	}
}

func TestKeyName(t *testing.T) {
	t.Setenv("HOME", "/home/me/")
	for want, key := range map[string][2]string{
		"~/.ssh/id.tpm (c)":            {"/home/me/.ssh/id.tpm", "c"},
		"~/id.tpm (work laptop, 2026)": {"/home/me/id.tpm", "work  laptop, 2026 "},
		"/home/mein/id.tpm":            {"/home/mein/id.tpm", ""},
		`"/my keys/id.tpm"`:            {"/my keys/id.tpm", "\u200b"},
		"c":                            {"", "c"},
		"id (a (not protected: (b)))":  {"id", "a (not protected: (b))"},
		`id ("a ((b)")`:                {"id", "a ((b)"},
		"without a name":               {"\n", "\x00"},
		`id ("x) SHA256:fake")`:        {"id", "x)\n SHA256:fake"},
		`"id (x)"`:                     {"id (x)", ""},
	} {
		if got := keyName(key[0], key[1]); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	t.Setenv("HOME", "/")
	if got := keyName("/id", ""); got != "/id" {
		t.Errorf("got %s", got)
	}
}

func TestPlain(t *testing.T) {
	for s, want := range map[string]string{
		"id_ecdsa.tpm":                    "id_ecdsa.tpm",
		"\x1b]0;x\a":                      "]0;x",
		"a\u202eb\u2066c\u200f":           "abc",
		"\xff\xfe":                        "\uFFFD",
		"a\u00adb\u200bc\ufeff":           "abc",
		"a\ufe0fb\U000e0100c":             "abc",
		"a\U000e0061b\ue000c":             "abc",
		"a\u3164b\u115f\u2800c":           "abc",
		"a\u00a0b\u3000c":                 "abc",
		"\u0301a":                         "a",
		"a" + strings.Repeat("\u0301", 9): "a\u0301\u0301\u0301",
		"a\u0301\u200b\u0301b\u0301":      "a\u0301\u0301b\u0301",
		strings.Repeat("é", 1000):         strings.Repeat("é", 126) + "…",
	} {
		if got := plain(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}

// clean checks that a text is as printable as its author meant it to be.
func clean(t *testing.T, text string) {
	t.Helper()
	marks := 0
	for _, r := range text {
		switch {
		case r == '\n':
		case !unicode.IsPrint(r), unicode.In(r, unicode.C, unicode.Bidi_Control, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
			t.Errorf("%q has %U", text, r)
		}
		if marks++; !unicode.Is(unicode.M, r) {
			marks = 0
		}
		if marks > maxMarks {
			t.Errorf("%q has %d marks in a row", text, marks)
		}
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"id_ecdsa.tpm", "\x1b]0;x\a", "a\u202eb\u2066c", "\xff\xfe", strings.Repeat("é", 1000), "a\u00adb\u200bc", "\u0301\u0301\u0301\u0301"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := plain(s)
		if len(got) > maxPlain || strings.Contains(got, "\n") || plain(got) != got {
			t.Errorf("%q became %q", s, got)
		}
		clean(t, got)
	})
}

// FuzzWording: whatever is in a question, the texts are bounded, clean, in
// lines that are not too long, and each line begins with words of ours.
func FuzzWording(f *testing.F) {
	f.Add("/k.tpm", "me@here", "git", "github.com", "gate", "git", uint8(1), uint8(1), 3)
	f.Add("x\nSHA256:", "x)\nSHA256:fake", "u\nfor ssh (process 1)", "h\u202e", "", "\u0301", uint8(2), uint8(1), -1)
	f.Add("𝖠", "\"", "%", "あ ", "e\u0301", " ", uint8(3), uint8(99), 1)
	f.Add("", "", "", "", "", "", uint8(4), uint8(1), 0)
	begins := []string{
		"Wrong PIN.", "Enter PIN for", "SHA256:", "FORWARDED from", "perhaps FORWARDED:", "to ", "for ", "over ",
		"This is the last try", "The answer also", "Allow use of key", "Key fingerprint ", "Perhaps FORWARDED:", "To ", "For ", "Over ",
		"One more wrong", "It ", "from other programs:", "Try the PIN of", "The TPM ", "Keys without", "does not help", "it at once", "Key: ", "  ",
		"5 tries left", "The answer",
	}
	f.Fuzz(func(t *testing.T, name, comment, user, host, via, other string, kind, times uint8, tries int) {
		for _, s := range []*string{&name, &comment, &user, &host, &via, &other} {
			*s = strings.Repeat(*s, int(times))
		}
		q := agent.Question{
			Name: name, Comment: comment, Fingerprint: printK, Peer: agent.Peer{PID: 1<<31 - 1},
			Use: agent.Use{
				Kind: agent.UseKind(kind % 6), User: user, Host: host, HostKey: printH, Namespace: other,
				Forwarded: kind&8 == 0, Via: []string{via, other}, KeyID: name, Principals: []string{user, host, via, other}, HostCert: kind&16 == 0,
			},
		}
		ask := agent.AuthPrompt{Question: q, Retry: tries < 2, TriesLeft: min(tries, 5), Waiting: 4000}
		if tries > 1 {
			ask.TriesLeft = 5
		}
		texts := []string{
			wording(ask), lastTry(ask), consent(agent.ConfirmPrompt{Question: q}),
			notice(agent.Notice{Question: q, Wait: time.Duration(tries)}),
		}
		// A process has a name of at most 15 octets, and here one that fuzzing
		// does not choose.
		more := len(processes("\nover", []string{user, host, via, other, name}, 1<<31-1)) - len("\nover process 2147483647")
		for _, text := range texts {
			clean(t, text)
			if len(text)+more > maxText {
				t.Errorf("%d octets: %s", len(text), text)
			}
			for line := range strings.Lines(text) {
				if columns(strings.TrimSuffix(line, "\n")) > maxColumns+8 {
					t.Errorf("too long: %q", line)
				}
				known := false
				for _, begin := range begins {
					known = known || strings.HasPrefix(line, begin)
				}
				if !known && !strings.HasPrefix(line, "The") {
					t.Errorf("begins in another way: %q", line)
				}
			}
		}
	})
}

// TestTerminalAsksForPIN: the last line of a text is no question, and on a
// terminal there is no field to type into.
func TestTerminalAsksForPIN(t *testing.T) {
	tty := ptytest.New(t)
	p := New(Options{Ways: []Way{Terminal}, Terminal: tty.Path()})
	done := make(chan result, 1)
	go func() {
		pin, err := p.AuthValue(t.Context(), agent.AuthPrompt{Question: agent.Question{Name: "id.tpm", Use: gitHub}, TriesLeft: 2})
		done <- result{pin, err}
	}()
	tty.WaitFor("Enter PIN for id.tpm\r\nto log in as git@github.com\r\n2 tries left before the TPM locks itself.\r\nPIN: ")
	tty.Type("1234\n")
	if got := <-done; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}
