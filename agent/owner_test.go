package agent

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"
)

// response is an answer of the agent to an extension.
func response(extension string, body []byte) []byte {
	return append(appendString([]byte{msgExtensionResponse}, extension), body...)
}

func TestOwnerAnswers(t *testing.T) {
	for _, want := range []KeyStatus{
		{},
		{Name: "/k.tpm", NeedsPIN: true, TriesLeft: -1},
		{Name: "k", Remembered: true, TriesLeft: 3},
		{Name: "k", NeedsPIN: true, Wait: 90 * time.Minute},
	} {
		got, err := ParseStatusAnswer(response(extKeyStatus, want.marshal(nil)))
		if err != nil || got != want {
			t.Errorf("got %+v, %v, not %+v", got, err, want)
		}
	}
	for _, want := range []error{nil, &WrongPINError{3}, &WrongPINError{-1}, &LockedOutError{time.Minute}, &LockedOutError{}, ErrNoPIN, ErrNoKey, errors.New("the TPM is on fire")} {
		life, got := ParseUnlockAnswer(response(extUnlockKey, marshalUnlock(time.Hour, want)))
		if !reflect.DeepEqual(got, want) || (got == nil) != (life == time.Hour) {
			t.Errorf("got %#v, %v, not %#v", got, life, want)
		}
	}
	refusals := []Refusal{
		{Time: time.Unix(1, 0), Request: "sign", Key: "k", Fingerprint: "SHA256:x", Cause: string(CauseCancelled), Detail: "d", PID: 7, Chain: []string{"git", "ssh"}},
		{Time: time.Unix(2, 0), Request: "list", Cause: string(CauseMalformed), PID: -1},
	}
	var b []byte
	for _, r := range refusals {
		b = r.marshal(b)
	}
	if got, err := ParseRefusals(response(extRefusals, b)); err != nil || !reflect.DeepEqual(got, refusals) {
		t.Errorf("got %+v, %v", got, err)
	}
	if n, err := ParseForgetAnswer(response(extForgetPINs, []byte{0, 0, 0, 5})); err != nil || n != 5 {
		t.Errorf("got %d, %v", n, err)
	}
}

// Answers that are cut off anywhere, have something behind them, or are for
// another request, are not taken for any.
func TestOwnerAnswersDamaged(t *testing.T) {
	parse := map[string]func([]byte) error{
		extKeyStatus:  func(b []byte) error { _, err := ParseStatusAnswer(b); return err },
		extUnlockKey:  func(b []byte) error { _, err := ParseUnlockAnswer(b); return err },
		extForgetPINs: func(b []byte) error { _, err := ParseForgetAnswer(b); return err },
	}
	whole := map[string][]byte{
		extKeyStatus:  response(extKeyStatus, (&KeyStatus{Name: "k"}).marshal(nil)),
		extUnlockKey:  response(extUnlockKey, marshalUnlock(0, nil)),
		extForgetPINs: response(extForgetPINs, make([]byte, 4)),
	}
	for name, parse := range parse {
		for i := range whole[name] {
			if parse(whole[name][:i]) == nil {
				t.Errorf("%s: the first %d bytes are enough", name, i)
			}
		}
		if err := parse(append(bytes.Clone(whole[name]), 0)); err == nil {
			t.Errorf("%s: a byte behind it is not seen", name)
		}
		if err := parse([]byte{msgFailure}); !errors.Is(err, ErrNotOwner) {
			t.Errorf("%s: a failure is %v", name, err)
		}
		for other, b := range whole {
			if other != name && parse(b) == nil {
				t.Errorf("%s: takes the answer to %s", name, other)
			}
		}
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]time.Duration{
		0: 0, -1: 0, 1: time.Second, time.Second: time.Second, time.Second + 1: 2 * time.Second,
		Forever: Forever, 1 << 62: Forever,
	} {
		if got := seconds(inSeconds(d)); got != want {
			t.Errorf("%v is sent as %v, not %v", d, got, want)
		}
	}
}
