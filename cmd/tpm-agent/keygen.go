package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// keygenOptions is the command line. A nil pointer is a question to ask.
type keygenOptions struct {
	keyType string
	bits    int // 0: the type's default
	comment *string
	file    *string // without .tpm
	pin     *string
	quiet   bool
	parent  string
	newTPM  bool     // the TPM is another one than before, and the user knows
	pcrs    []string // as typed
	target  *string  // the storage key file of another machine
	list    bool
	json    bool
}

func newKeygenCmd(g *global) *cobra.Command {
	var o keygenOptions
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key in the TPM",
		Long:  keygenHelp,
		Example: `  tpm-agent keygen                            # ECDSA P-256; asks the rest
  tpm-agent keygen -t rsa -b 2048 -C work -f ~/.ssh/id_work
  tpm-agent keygen -N ''                      # no PIN; asks nothing
  tpm-agent keygen --pcr 7                    # bound to today's secure boot
  tpm-agent keygen --list                     # what this TPM supports
  tpm-agent keygen --for laptop.srk -f work   # for another machine`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.comment, o.file, o.pin, o.target = given(cmd, "comment"), given(cmd, "file"), given(cmd, "pin"), given(cmd, "for")
			if err := o.check(cmd); err != nil {
				return err
			}
			ctx, done := interrupting(cmd)
			defer done()
			if o.list {
				return runKeygenList(ctx, g, o.json)
			}
			if o.target != nil {
				return runKeygenFor(ctx, g, o)
			}
			return runKeygen(ctx, g, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.keyType, "type", "t", "ecdsa", "`TYPE` of the key: ecdsa or rsa")
	f.IntVarP(&o.bits, "bits", "b", 0, "size in `BITS`: 256, 384, 521 for ecdsa (default 256);\n2048, 3072, 4096 for rsa (default 2048)")
	f.StringP("comment", "C", "", "`COMMENT` in the public key (default user@host)")
	f.StringP("file", "f", "", "save as `FILE`.tpm and FILE.pub (default: asked for;\nwith -N, ~/.ssh/id_TYPE)")
	f.StringP("pin", "N", "", "the new `PIN`; empty for none (default: asked for)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only questions and errors")
	f.StringVar(&o.parent, "parent", "owner", "storage `KEY` that wraps it: owner, endorsement, or a\npersistent handle 0x81……")
	f.BoolVar(&o.newTPM, "new-tpm", false, "accept that the TPM was cleared or replaced")
	f.StringArrayVar(&o.pcrs, "pcr", nil, "bind the key to the boot state in `PCRS`, such as 7 or\n7,11 (repeatable)")
	f.String("for", "", "make a key for another machine's TPM: `SRK` is the file\nthat tpm-agent srk printed there")
	f.BoolVar(&o.list, "list", false, "list the kinds of keys that this TPM supports")
	f.BoolVar(&o.json, "json", false, "with --list: print JSON")
	for _, free := range []string{"comment", "pin", "pcr"} {
		mustComplete(cmd, free)
	}
	mustComplete(cmd, "type", "ecdsa", "rsa")
	mustComplete(cmd, "bits", "256", "384", "521", "2048", "3072", "4096")
	mustComplete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const keygenHelp = `Makes a key inside the TPM, much as ssh-keygen(1) makes one on disk.

It asks for a file name and for a PIN, which may be empty. It saves FILE.tpm,
the private key wrapped by this TPM, and FILE.pub. Nothing is overwritten. No
TPM supports Ed25519. Details: tpm-agent man keygen.`

// given is the value of a flag if it was given at all: an empty PIN is an
// answer.
func given(cmd *cobra.Command, name string) *string {
	f := cmd.Flags().Lookup(name)
	if !f.Changed {
		return nil
	}
	value := f.Value.String()
	return &value
}

// check refuses option combinations that make no sense, and what would make a
// public key file that is none.
func (o *keygenOptions) check(cmd *cobra.Command) error {
	if !o.list && o.json {
		return usage("--json goes with --list")
	}
	for _, name := range []string{"type", "bits", "comment", "file", "pin", "parent", "quiet", "pcr", "for", "new-tpm"} {
		if o.list && cmd.Flags().Changed(name) {
			return usage("--list makes no key, so --%s does not go with it", name)
		}
	}
	if o.target != nil && len(o.pcrs) > 0 {
		return usage("--pcr binds a key to this machine's boot state, and --for makes one for another machine")
	}
	if o.target != nil && o.newTPM {
		return usage("--new-tpm is about this machine's TPM, and --for makes a key for another machine")
	}
	if cmd.Flags().Changed("bits") && o.bits == 0 {
		return usage("-b 0: no key has no bits")
	}
	if o.comment != nil && plain(*o.comment) != *o.comment {
		return usage("-C: the comment must be one line of printable characters")
	}
	if _, err := parsePCRs(o.pcrs); err != nil {
		return err
	}
	if o.file != nil {
		return checkName(*o.file)
	}
	return nil
}

// checkName refuses file names that would not become what one expects.
func checkName(file string) error {
	switch base := filepath.Base(file); {
	case file == "" || strings.HasSuffix(file, "/") || base == "." || base == "..":
		return usage("%q is no name for a key file", file)
	case strings.HasSuffix(file, ".tpm"), strings.HasSuffix(file, ".pub"):
		return withHint(usage("%s: give the name without its suffix; .tpm and .pub are added", plain(file)),
			"-f %s", shQuote(file[:len(file)-len(".tpm")]))
	}
	return nil
}

// storageKey is the handle that --parent names.
func storageKey(name string) (uint32, error) {
	switch name {
	case "owner":
		return keyfile.ParentOwner, nil
	case "endorsement":
		return keyfile.ParentEndorsement, nil
	case "null":
		return 0, usage("--parent null: such a key is lost when the machine restarts")
	case "platform":
		return 0, usage("--parent platform: that hierarchy belongs to the firmware")
	}
	handle, err := strconv.ParseUint(name, 0, 32)
	if err != nil || handle>>24 != 0x81 {
		return 0, usage("--parent %s: must be owner, endorsement or a persistent handle 0x81……", plain(name))
	}
	return uint32(handle), nil
}

// runKeygen asks what was not said, makes the key, tries it, and saves it.
func runKeygen(ctx context.Context, g *global, o keygenOptions) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	tm, err := o.template()
	if err != nil {
		return err
	}
	comment, err := o.keyComment()
	if err != nil {
		return err
	}
	if o.pin == nil {
		if err := reach(ctx, addr); err != nil {
			return fmt.Errorf("making the key: %w", err)
		}
	}
	ask := newAsker(g.sys)
	file, err := o.place(ctx, g.sys, ask)
	if err != nil {
		return err
	}
	if tm.Auth, err = o.newPIN(ctx, ask); err != nil {
		return err
	}
	defer clear(tm.Auth)

	return o.makeAndSave(ctx, g.sys, addr, tm, comment, file)
}

// makeAndSave makes the key, tries it, and saves it as file.tpm and file.pub.
func (o *keygenOptions) makeAndSave(ctx context.Context, sys system, addr tcti.Address, tm tpmkey.Template, comment, file string) error {
	tpm := openTPM(addr)
	remembering := newMemory(addr, nil)
	key, err := o.make(ctx, tpm, tm, remembering, filepath.Dir(file))
	if err == nil {
		key.where, err = whereabouts(ctx, tpm, addr.Software())
	}
	if err := errors.Join(orInterrupted(ctx, err), tpm.Close()); err != nil {
		return fmt.Errorf("making the key: %w", err)
	}
	if !o.quiet {
		warnPCRs(sys.stderr, key.bound)
	}
	if !addr.Software() {
		key.where += " and cannot leave it"
	}
	key.comment = comment
	to := keyFiles{private: file + ".tpm", public: file + ".pub"}
	if err := key.save(to); err != nil {
		return err
	}
	remembering.learn(filepath.Dir(file), key)
	if o.quiet {
		return nil
	}
	err = key.announce(sys.stdout, to)
	if err == nil {
		err = announcePCRs(sys.stdout, tm.PCRs)
	}
	return notSaid(err, "the key was made, and is in %s", plain(to.private))
}

// make makes the key, in the TPM of before unless a new one was announced.
func (o *keygenOptions) make(ctx context.Context, tpm *tpmkey.TPM, tm tpmkey.Template, remembering *memory, dir string) (key *newKey, err error) {
	tm.Parent, tm.ParentName, err = remembering.storageKey(ctx, tpm, dir, tm.Parent, o.newTPM)
	if err != nil {
		return nil, err
	}
	return makeKey(ctx, tpm, tm)
}

func (o *keygenOptions) template() (tm tpmkey.Template, err error) {
	if tm.Algorithm, err = o.algorithm(); err != nil {
		return tm, err
	}
	if tm.PCRs, err = parsePCRs(o.pcrs); err != nil {
		return tm, err
	}
	tm.Parent, err = storageKey(o.parent)
	return tm, err
}

// keyComment is user@host, as ssh-keygen has it, unless one was given.
func (o *keygenOptions) keyComment() (string, error) {
	if o.comment != nil {
		return *o.comment, nil
	}
	who, err := user.Current()
	if err != nil {
		return "", withHint(fmt.Errorf("finding your name for the comment: %w", err), "give a comment with -C")
	}
	host, err := os.Hostname()
	if err != nil {
		return "", withHint(fmt.Errorf("finding the host's name for the comment: %w", err), "give a comment with -C")
	}
	return plain(who.Username + "@" + host), nil
}

// place is where the key goes. It must be free, and there must be a directory.
func (o *keygenOptions) place(ctx context.Context, sys system, ask *asker) (string, error) {
	dir, err := sys.sshDir()
	file := ""
	switch {
	case o.file != nil:
		file = *o.file
	case err != nil:
		return "", err
	case o.pin != nil: // who gives the PIN wants no questions
		file = filepath.Join(dir, "id_"+o.keyType)
	default:
		if file, err = ask.file(ctx, filepath.Join(dir, "id_"+o.keyType)); err != nil {
			return "", err
		}
		if err := checkName(file); err != nil {
			return "", err
		}
	}
	if err := free(file+".tpm", file+".pub", file); err != nil {
		return "", err
	}
	return file, ready(sys, filepath.Dir(file))
}

// ready makes sure that there is a directory to save keys in. ~/.ssh is made, as
// ssh-keygen does it; one of any other name must exist.
func ready(sys system, dir string) error {
	if dotSSH, err := sys.sshDir(); err == nil && dir == dotSSH {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("saving the key: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("saving the key: %s is not a directory", plain(dir))
	}
	return nil
}

// free makes sure that nothing is in the way: neither what would be written,
// nor a key that ssh would take the public key for.
func free(names ...string) error {
	for _, name := range names {
		_, err := os.Lstat(name)
		switch {
		case err == nil:
			return withHint(fmt.Errorf("%s already exists; no key was made, and nothing was changed", plain(name)),
				"choose another name with -f, or move it away")
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("looking for %s: %w", plain(name), err)
		}
	}
	return nil
}

func (o *keygenOptions) newPIN(ctx context.Context, ask *asker) ([]byte, error) {
	if o.pin == nil {
		return ask.newPIN(ctx)
	}
	if err := checkNewPIN([]byte(*o.pin)); err != nil {
		return nil, usage("-N: %w", err)
	}
	return []byte(*o.pin), nil
}
