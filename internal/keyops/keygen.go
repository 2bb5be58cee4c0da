package keyops

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

const askNewPIN = "Enter PIN (empty for no PIN): "

// KeygenOptions are the options of keygen. A nil pointer is a question to ask.
type KeygenOptions struct {
	KeyType string
	Bits    int // 0: the type's default
	Comment *string
	File    *string // without .tpm
	PIN     *string
	Quiet   bool
	Parent  string
	NewTPM  bool     // the user knows that the TPM was changed
	PCRs    []string // as typed
	Target  *string  // the storage key file of another machine
	List    bool
	JSON    bool
	Given   func(flag string) bool
}

// Keygen makes a key in the TPM, tries it, and saves it, or does what else the
// options ask for.
func Keygen(ctx context.Context, sys *term.System, o KeygenOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	p := &op{sys: sys, ask: term.NewAsker(sys), quiet: o.Quiet}
	switch {
	case o.List:
		return p.listKinds(ctx, o.JSON)
	case o.Target != nil:
		return p.keygenElsewhere(ctx, &o)
	}
	if err := p.open(); err != nil {
		return err
	}
	tm, comment, err := o.template()
	if err != nil {
		return err
	}
	if o.PIN == nil { // answers would be of no use without the TPM
		if conn, err := p.addr.Open(ctx); err != nil {
			return fmt.Errorf("making the key: %w", term.OrInterrupted(ctx, err))
		} else if err := conn.Close(); err != nil {
			return err
		}
	}
	preset := "id_" + o.KeyType
	if o.File == nil {
		dir, err := sys.SSHDir()
		if err != nil {
			return err
		}
		preset = filepath.Join(dir, preset)
	}
	files, err := p.askFiles(ctx, &o, preset)
	if err != nil {
		return err
	}
	if o.PIN == nil {
		if tm.Auth, err = p.ask.NewPIN(ctx, askNewPIN); err != nil {
			return err
		}
	}
	defer clear(tm.Auth)
	return p.create(ctx, tm, comment, files, o.NewTPM)
}

// check refuses option combinations that make no sense, and what would not become
// a public key file.
func (o *KeygenOptions) check() error {
	if o.List {
		for _, name := range []string{"type", "bits", "comment", "file", "pin", "parent", "quiet", "pcr", "for", "new-tpm"} {
			if o.Given(name) {
				return term.Usage("--list makes no key, so --%s does not go with it", name)
			}
		}
	}
	switch {
	case !o.List && o.JSON:
		return term.Usage("--json goes with --list")
	case o.Target != nil && len(o.PCRs) > 0:
		return term.Usage("--pcr binds a key to this machine's boot state, and --for makes one for another machine")
	case o.Target != nil && o.NewTPM:
		return term.Usage("--new-tpm is about this machine's TPM, and --for makes a key for another machine")
	case o.Bits == 0 && o.Given("bits"):
		return term.Usage("-b 0: no key has no bits")
	case o.Comment != nil && term.Plain(*o.Comment) != *o.Comment:
		return term.Usage("-C: the comment must be one line of printable characters")
	case o.File != nil:
		return checkName(*o.File)
	}
	return nil
}

// keygenElsewhere is `keygen --for`: it makes a key for another machine's TPM.
func (p *op) keygenElsewhere(ctx context.Context, o *KeygenOptions) error {
	to, err := readTarget(*o.Target)
	if err != nil {
		return err
	}
	tm, comment, err := o.template()
	if err != nil {
		return err
	}
	files, err := p.askFiles(ctx, o, "id_"+o.KeyType)
	if err != nil {
		return err
	}
	if o.PIN == nil {
		if tm.Auth, err = p.ask.NewPIN(ctx, askNewPIN); err != nil {
			return err
		}
	}
	defer clear(tm.Auth)
	parent, err := to.parent(o.Parent)
	if err != nil {
		return err
	}
	private, err := makeInMemory(tm.Algorithm)
	if err != nil {
		return fmt.Errorf("making the key: %w", err)
	}
	return p.wrap(ctx, to, private, tpmkey.WrapOptions{Auth: tm.Auth, Parent: parent}, comment, files,
		"It was made in this machine's memory, not in a TPM, and was not kept here.")
}

// askFiles returns the files in which to save a key. Their name is as the options
// say, else preset if there must be no questions, else as the user says.
func (p *op) askFiles(ctx context.Context, o *KeygenOptions, preset string) (keyFiles, error) {
	name := preset
	switch {
	case o.File != nil:
		name = *o.File
	case o.PIN == nil:
		var err error
		if name, err = p.ask.File(ctx, preset); err == nil {
			err = checkName(name)
		}
		if err != nil {
			return keyFiles{}, err
		}
	}
	if o.Target != nil {
		to, err := p.wrappedFiles(name)
		return to, errors.Join(err, free(to.public))
	}
	to := keyFiles{private: name + ".tpm", public: name + ".pub"}
	if err := free(to.private, to.public, name); err != nil {
		return to, err
	}
	return to, p.ready(filepath.Dir(name))
}

// create makes a key, tries it, and saves it.
func (p *op) create(ctx context.Context, tm tpmkey.Template, comment string, to keyFiles, newTPM bool) (err error) {
	var made *keyfile.TPMKey
	var key *newKey
	home := ""
	tm.Parent, tm.ParentName, err = p.storageKey(ctx, filepath.Dir(to.private), tm.Parent, newTPM)
	if err == nil {
		made, err = p.tpm.Create(ctx, tm)
	}
	if err == nil {
		key, err = p.try(ctx, made, tm.ParentName, tm.Auth)
	}
	if err == nil && !p.quiet {
		home, err = p.home(ctx, true)
	}
	if err := p.close(ctx, err); err != nil {
		return fmt.Errorf("making the key: %w", err)
	}
	key.comment = comment
	if !p.quiet {
		inspect.WarnPCRs(p.sys.Stderr, key.parsed)
	}
	if err := p.save(key, to); err != nil || p.quiet {
		return err
	}
	if len(tm.PCRs) > 0 {
		are := "are"
		if len(tm.PCRs) == 1 {
			are = "is"
		}
		home += fmt.Sprintf("It signs only while %s %s as now (%s). Updates can change that, and nothing but the old state brings the key back: have another way in.\n",
			term.PCRs(tm.PCRs), are, term.PCRMeanings(tm.PCRs))
	}
	return term.NotSaid(p.say("%s", key.announce(to, "Your", "identification")+home), "the key was made, and is in %s", term.Plain(to.private))
}

// template returns what the options say about the key, and its comment: user@host,
// as ssh-keygen has it, unless one was given.
func (o *KeygenOptions) template() (tm tpmkey.Template, comment string, err error) {
	if tm.Algorithm, err = algorithm(o.KeyType, o.Bits); err != nil {
		return tm, "", err
	}
	if tm.PCRs, err = parsePCRs(o.PCRs); err != nil {
		return tm, "", err
	}
	if tm.Parent, err = parentHandle(o.Parent); err != nil {
		return tm, "", err
	}
	if o.PIN != nil {
		tm.Auth = []byte(*o.PIN)
		if err := term.CheckPIN(tm.Auth); err != nil {
			return tm, "", term.Usage("-N: %w", err)
		}
	}
	if o.Comment != nil {
		return tm, *o.Comment, nil
	}
	me, err := user.Current()
	if err != nil {
		return tm, "", term.Hint(fmt.Errorf("finding your name for the comment: %w", err), "give a comment with -C")
	}
	host, err := os.Hostname()
	if err != nil {
		return tm, "", term.Hint(fmt.Errorf("finding the host's name for the comment: %w", err), "give a comment with -C")
	}
	return tm, term.Plain(me.Username + "@" + host), nil
}

// parsePCRs reads the values of --pcr: numbers, or lists of them. A PC has the PCRs
// 0 to 23 (TCG PC Client Platform TPM Profile, 4.6).
func parsePCRs(values []string) ([]int, error) {
	var list []int
	for _, value := range values {
		for word := range strings.SplitSeq(value, ",") {
			n, err := strconv.Atoi(word)
			switch {
			case word == "":
				return nil, term.Usage("--pcr %q: a number is missing", term.Plain(value))
			case err != nil || n < 0 || n > 23 || word != strconv.Itoa(n):
				return nil, term.Usage("--pcr %s: the PCRs are 0 to 23", term.Plain(word))
			case slices.Contains(list, n):
				return nil, term.Usage("--pcr: %d is there twice", n)
			}
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// kinds are the keys that can be asked for, by -t and -b; the first size of a
// type is its default.
var kinds = []struct {
	inspect.Kind
	algorithm tpmkey.Algorithm
}{
	{inspect.Kind{Type: "ecdsa", Bits: 256}, tpmkey.ECDSAP256},
	{inspect.Kind{Type: "ecdsa", Bits: 384}, tpmkey.ECDSAP384},
	{inspect.Kind{Type: "ecdsa", Bits: 521}, tpmkey.ECDSAP521},
	{inspect.Kind{Type: "rsa", Bits: 2048}, tpmkey.RSA2048},
	{inspect.Kind{Type: "rsa", Bits: 3072}, tpmkey.RSA3072},
	{inspect.Kind{Type: "rsa", Bits: 4096}, tpmkey.RSA4096},
}

// algorithm returns the kind of key asked for.
func algorithm(keyType string, bits int) (tpmkey.Algorithm, error) {
	var sizes []string
	for _, kind := range kinds {
		if kind.Type == keyType && (bits == 0 || kind.Bits == bits) {
			return kind.algorithm, nil
		}
		if kind.Type == keyType {
			sizes = append(sizes, strconv.Itoa(kind.Bits))
		}
	}
	if len(sizes) > 0 {
		return 0, term.Usage("-b %d: an %s key has %s bits", bits, keyType, strings.Join(sizes, ", "))
	}
	return 0, noSuchType(keyType)
}

// noSuchType says why a type that ssh-keygen knows cannot be had in a TPM.
func noSuchType(keyType string) error {
	const instead = "use -t ecdsa, which servers since OpenSSH 5.7 (2011) take; an ed25519 key made by ssh-keygen can be used beside it, from its file"
	no := func(why string) error { return &tpmkey.UnsupportedError{What: "-t " + term.Plain(keyType), Why: why} }
	switch {
	case strings.HasSuffix(keyType, "-sk"):
		return term.Hint(no("that is a key of a FIDO token, not of the TPM"), "ssh-keygen -t %s makes it", term.Quote(keyType))
	case keyType == "ed25519":
		return term.Hint(no("no TPM has Ed25519"), instead)
	case keyType == "dsa":
		return term.Hint(no("no TPM has DSA, and OpenSSH has given it up"), instead)
	}
	return term.Usage("-t %s: the types are ecdsa and rsa", term.Plain(keyType))
}

// listKinds shows what this TPM can make, in the words of -t and -b.
func (p *op) listKinds(ctx context.Context, asJSON bool) error {
	if err := p.open(); err != nil {
		return err
	}
	c, err := p.tpm.Capabilities(ctx)
	if err := p.close(ctx, err); err != nil {
		return fmt.Errorf("asking the TPM what it can make: %w", err)
	}
	shown := struct {
		TPM          string         `json:"tpm"`
		Protected    bool           `json:"protected"` // false for the software TPM
		Manufacturer string         `json:"manufacturer"`
		Vendor       string         `json:"vendor,omitempty"`
		Firmware     string         `json:"firmware"`
		Keys         []inspect.Kind `json:"keys"`
	}{p.addr.String(), !p.addr.Software(), words(c.Manufacturer), words(c.Vendor), words(c.Firmware), []inspect.Kind{}}
	text := fmt.Sprintf("TPM: %s, %s%s\n", p.addr, chipName(c), mark(p.addr.Software()))
	for _, k := range kinds {
		answer := "no"
		if slices.Contains(c.Algorithms, k.algorithm) {
			answer = "yes"
			shown.Keys = append(shown.Keys, k.Kind)
		}
		text += fmt.Sprintf("-t %-5s -b %-4d  %s\n", k.Type, k.Bits, answer)
	}
	if asJSON {
		return term.JSON(p.sys.Stdout, shown)
	}
	return p.say("%s", text)
}

func makeInMemory(a tpmkey.Algorithm) (crypto.Signer, error) {
	switch a {
	case tpmkey.ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case tpmkey.ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case tpmkey.ECDSAP521:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, a.Bits())
}
