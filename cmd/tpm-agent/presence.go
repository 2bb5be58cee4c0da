package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// presence is whether a key is one of this TPM, and what is remembered of it.
type presence struct {
	TPM        string          `json:"tpm"`
	Remembered *storageKeyInfo `json:"storage_key"`
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

// askingTime bounds how long inspect waits for a TPM that others use.
const askingTime = 20 * time.Second

// findPresence asks the memory, and the TPM if the key can be used at all.
func findPresence(ctx context.Context, addr tcti.Address, file string, key *keyfile.TPMKey, public ssh.PublicKey, usable bool) presence {
	m := newMemory(addr, nil)
	known := m.recall()(file)
	p := presence{TPM: plain(m.tpm), InTPM: "unknown"}
	remembered, _ := known.Of(parents.KeyOf(public, key), m.tpm)
	p.Remembered = infoOf(remembered)
	if !usable {
		p.Why = "not asked: tpm-agent cannot use such a key"
		return p
	}
	tpm := openTPM(addr)
	tried, err := tpm.Key(key)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, askingTime)
		defer cancel()
		err = p.ask(ctx, m.remember(tried, known, file, public), remembered != nil)
	}
	if err = errors.Join(err, tpm.Close()); err != nil && p.Why == "" {
		p.Why = oneLine(err.Error())
	}
	if !addr.Software() {
		p.compareBoot(systemdKey)
	}
	return p
}

// ask loads the key. What the TPM says is noted where something is remembered
// of the key already: looking at a file makes no new one beside it.
func (p *presence) ask(ctx context.Context, key *rememberedKey, note bool) error {
	err := key.Load(ctx)
	var changed *tpmkey.ParentChangedError
	switch {
	case err == nil:
		p.InTPM = "yes"
		at := key.Parent()
		p.Present, p.At = fmt.Sprintf("%x", at.Name), at.At
		if note {
			key.note()
		}
		return nil
	case gone(err):
		p.InTPM = "no"
		if errors.As(err, &changed) {
			p.Present, p.At = fmt.Sprintf("%x", changed.Have.Name), changed.Have.At
		}
		if note {
			err = key.missed(err)
		}
	case errors.Is(err, tpmkey.ErrDamaged):
		p.InTPM = "no"
	}
	return err
}

// print shows it in the lines of inspect.
func (p *presence) print(line func(name, format string, args ...any)) {
	if r := p.Remembered; r != nil {
		line("remembered", "storage key %s (%s) of %s, seen %s", r.Name, r.Place, r.TPM, period(r.First, r.Last))
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

func period(first, last parents.Date) string {
	if first == last {
		return "on " + string(first)
	}
	return fmt.Sprintf("from %s to %s", first, last)
}

// systemdKey is where systemd-tpm2-setup leaves the public area of the storage
// key at 0x81000001, as it was when the machine started.
const systemdKey = "/run/systemd/tpm2-srk-public-key.tpm2b_public"

// compareBoot compares with what systemd has left. Another storage key than its
// is no sign of anything, unless it is in the same place.
func (p *presence) compareBoot(path string) {
	if p.Present == "" {
		return
	}
	data, err := readSmall(path)
	if err != nil {
		return
	}
	public, err := keyfile.ParsePublic(data)
	if err != nil {
		return
	}
	switch same := p.Present == fmt.Sprintf("%x", public.Name()); {
	case same:
		p.AtBoot = "same"
	case p.At == "0x81000001":
		p.AtBoot = "other"
	}
}
