package inspect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// presence is whether a key is one of this TPM, and what is remembered of it.
type presence struct {
	TPM        string      `json:"tpm"`
	Remembered *storageKey `json:"storage_key"`
	// InTPM is "yes", "no", or "unknown" if the TPM could not be asked.
	InTPM string `json:"in_this_tpm"`
	Why   string `json:"in_this_tpm_because,omitempty"`
	// Present is the Name of the storage key under which it loads, or that is
	// in the place of the one that it was loaded under before.
	Present string `json:"storage_key_present,omitempty"`
	At      string `json:"storage_key_present_at,omitempty"`
	// AtBoot is "same" or "other" where systemd has left the storage key that
	// it found when the machine started.
	AtBoot string `json:"storage_key_at_boot,omitempty"`
}

// storageKey describes a remembered storage key.
type storageKey struct {
	Name  string       `json:"name"`
	Place string       `json:"place"`
	TPM   string       `json:"tpm"`
	First parents.Date `json:"first_seen"`
	Last  parents.Date `json:"last_seen"`
	Gone  parents.Date `json:"gone_since,omitempty"`
}

func newStorageKey(p *parents.Parent) *storageKey {
	if p == nil {
		return nil
	}
	return &storageKey{fmt.Sprintf("%x", p.Name), p.At, term.Plain(p.TPM), p.First, p.Last, p.Gone}
}

// askingTime bounds how long inspect waits for a TPM that others use.
const askingTime = 20 * time.Second

// findPresence asks the memory, and the TPM if the key can be used at all.
func findPresence(ctx context.Context, addr tcti.Address, tpm *tpmkey.TPM, file string, key *keyfile.TPMKey, public ssh.PublicKey, usable bool) presence {
	book := parents.NewBook(parents.Default(), addr, nil)
	known := book.Recall()(file)
	p := presence{TPM: term.Plain(book.TPM), InTPM: "unknown", Remembered: newStorageKey(book.Of(known, public, key))}
	if !usable {
		p.Why = "not asked: tpm-agent cannot use such a key"
		return p
	}
	tried, err := tpm.Key(key)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, askingTime)
		defer cancel()
		err = p.ask(ctx, tried, book.Record(known, tried, file, public))
	}
	if err != nil {
		p.Why = term.OneLine(err.Error())
	}
	if !addr.Software() {
		p.compareBoot(systemdKey)
	}
	return p
}

// ask loads the key. What the TPM says is remembered only if something is
// remembered of the key already: looking at a file makes no new one beside it.
func (p *presence) ask(ctx context.Context, key *tpmkey.Key, record *parents.Record) error {
	err := key.Load(ctx)
	var changed *tpmkey.ParentChangedError
	switch {
	case err == nil:
		p.InTPM = "yes"
		at := key.Parent()
		p.Present, p.At = fmt.Sprintf("%x", at.Name), at.At
		if p.Remembered != nil {
			record.Note(at)
		}
		return nil
	case parents.IsGone(err):
		p.InTPM = "no"
		if errors.As(err, &changed) {
			p.Present, p.At = fmt.Sprintf("%x", changed.Have.Name), changed.Have.At
		}
		if p.Remembered != nil {
			err = record.Explain(err)
		}
	case errors.Is(err, tpmkey.ErrDamaged):
		p.InTPM = "no"
	}
	return err
}

// print shows it in the lines of inspect.
func (p *presence) print(line func(name, format string, args ...any)) {
	if r := p.Remembered; r != nil {
		seen := fmt.Sprintf("from %s to %s", r.First, r.Last)
		if r.First == r.Last {
			seen = "on " + string(r.First)
		}
		line("remembered", "storage key %s (%s) of %s, seen %s", r.Name, r.Place, r.TPM, seen)
	} else {
		line("remembered", "nothing")
	}
	switch {
	case p.InTPM == "yes":
		line("this TPM", "loads it, under storage key %s (%s)", p.Present, p.At)
	case p.InTPM == "no":
		line("this TPM", "does not load it: %s", p.Why)
		if p.Present != "" {
			line("it has", "storage key %s (%s)", p.Present, p.At)
		}
	default:
		line("this TPM", "unknown: %s", p.Why)
	}
	switch p.AtBoot {
	case "same":
		line("at boot", "systemd found the same storage key")
	case "other":
		line("at boot", "systemd found ANOTHER storage key at 0x81000001")
	}
}

// systemdKey is where systemd-tpm2-setup leaves the public area of the storage
// key at 0x81000001, as it was when the machine started.
const systemdKey = "/run/systemd/tpm2-srk-public-key.tpm2b_public"

// compareBoot compares with what systemd has left. A different storage key means
// something only if it is in the same place.
func (p *presence) compareBoot(path string) {
	data, err := ReadSmall(path)
	if err != nil || p.Present == "" {
		return
	}
	public, err := keyfile.ParsePublic(data)
	switch {
	case err != nil:
	case p.Present == fmt.Sprintf("%x", public.Name()):
		p.AtBoot = "same"
	case p.At == "0x81000001":
		p.AtBoot = "other"
	}
}
