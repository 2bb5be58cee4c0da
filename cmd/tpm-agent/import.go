package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// importOptions is the command line. A nil pointer is a question to ask, or
// taken from what is imported.
type importOptions struct {
	source         string // the file to import
	comment        *string
	file           *string // without .tpm
	pin            *string
	passphrase     *string
	keepPassphrase bool
	noPIN          bool
	quiet          bool
	retire         bool
	replace        bool
	parent         string
	newTPM         bool   // the TPM is another one than before, and the user knows
	target         string // the storage key file of another machine, with --for
}

func newImportCmd(g *global) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Bring an existing private key into the TPM",
		Long:  importHelp,
		Example: `  tpm-agent import ~/.ssh/id_rsa              # makes id_rsa.tpm beside it
  tpm-agent import --keep-passphrase --retire ~/.ssh/id_rsa
  tpm-agent import --replace ~/.ssh/id_rsa    # id_rsa becomes the TPM key
  ssh laptop tpm-agent srk > laptop.srk       # for another machine:
  tpm-agent import --for laptop.srk ~/.ssh/id_rsa
  tpm-agent import id_rsa.wrapped.tpm         # over there`,
		Args:              oneFile("the private key file"),
		ValidArgsFunction: completeOneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = args[0]
			o.comment, o.file, o.pin, o.passphrase = given(cmd, "comment"), given(cmd, "file"), given(cmd, "pin"), given(cmd, "passphrase")
			if err := o.check(cmd); err != nil {
				return err
			}
			ctx, done := interrupting(cmd)
			defer done()
			if cmd.Flags().Changed("for") {
				return runWrap(ctx, g, &o)
			}
			return runImport(ctx, g, &o)
		},
	}
	f := cmd.Flags()
	f.StringP("passphrase", "P", "", "`PASSPHRASE` of FILE, or the PIN of a wrapped key (default: asked for)")
	f.StringP("pin", "N", "", "the new `PIN`; empty for none (default: asked for)")
	f.BoolVar(&o.keepPassphrase, "keep-passphrase", false, "the passphrase becomes the PIN")
	f.BoolVar(&o.noPIN, "no-pin", false, "no PIN, as -N ''")
	f.StringP("comment", "C", "", "`COMMENT` in the public key (default: the key's, or that of FILE.pub)")
	f.StringP("file", "f", "", "save in `OUT`.tpm and OUT.pub (default FILE.tpm and FILE.pub)")
	f.BoolVar(&o.retire, "retire", false, "then move FILE to where ssh does not look")
	f.BoolVar(&o.replace, "replace", false, "put the TPM key where FILE was, and FILE where --retire puts it")
	f.StringVar(&o.target, "for", "", "wrap for the TPM of another machine: `SRK` is the file that tpm-agent srk printed there")
	f.StringVar(&o.parent, "parent", "owner", "the storage `KEY` that wraps it: owner, endorsement, or a persistent handle 0x81……")
	f.BoolVar(&o.newTPM, "new-tpm", false, "the TPM was cleared or is another one than before: that is known")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing but questions and errors")
	for _, free := range []string{"comment", "pin", "passphrase"} {
		mustComplete(cmd, free)
	}
	mustComplete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const importHelp = `Brings a private key that you have into the TPM. The public key stays the same, so
that servers go on knowing it. FILE is a private key of ssh-keygen or OpenSSL
(OpenSSH, PKCS#8, PKCS#1 or SEC1, encrypted or not): RSA or ECDSA, of the sizes
that keygen --list shows. Or it is a key that was wrapped for this TPM elsewhere,
by import --for, keygen --for, create_tpm2_key --import or ssh-tpm-keygen --wrap.

The key goes to the TPM wrapped, so that nobody on the bus sees it, and signs a
test message before anything is saved. FILE.tpm is the key as this TPM alone can
use it, FILE.pub the public key; if FILE.pub is there already, it is left as it
is. Nothing is overwritten.

A passphrase is asked for, or read as a line from standard input if that is no
terminal. The key in the TPM has a PIN or none: --keep-passphrase makes the
passphrase the PIN, -N gives a new one, --no-pin leaves it out. Without one of
these you are asked; without a terminal they must be given, for a key that has a
passphrase. The PIN of a wrapped key was given when it was wrapped, and stays; a
wrong one counts, and before the one that would lock the TPM it wants to hear
"yes". -P and -N put secrets into the list of processes, where others can read
them for a moment.

The old file stays. Whoever reads it still has the key: the TPM protects only its
own copy. --retire moves it to $XDG_STATE_HOME/tpm-agent/retired (by default below
~/.local/state) once the new key has signed. --replace does so too, and makes FILE
itself the key for the TPM, for programs and settings that name it; FILE is the
old key or the new one at every moment. Neither ever deletes a key: what backups
and old disks hold is for you to think of, too.

If there are keys of another TPM in the directory already, nothing is imported
unless --new-tpm says that you know that the TPM was cleared or exchanged:
somebody between you and the TPM who plays another one would get the private key.

--for SRK needs no TPM here. It makes FILE.wrapped.tpm in the current directory,
or OUT.wrapped.tpm, with the public key beside it, for the one TPM that SRK
belongs to; there "tpm-agent import" makes an ordinary key of it. SRK is the
public storage key of that TPM: what tpm-agent srk printed, a public key in PEM
form, or a TPM2B_PUBLIC; systemd has both in /run/systemd/tpm2-srk-public-key.*.
Whoever hands you an SRK gets your key. Compare its fingerprint with that of
"tpm-agent srk --fingerprint" on the other machine, by another way than the file
came. With --for, --parent says where the storage key is over there.

Ed25519 keys cannot be imported: no TPM has them. Nor can DSA keys, and FIDO keys
live in their token. These end with exit status 3, as does a key of a size that
this TPM does not take.`

// oneFile wants exactly one argument.
func oneFile(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return noArgs(cmd, args[1:])
		}
		return someArgs(what)(cmd, args)
	}
}

// check refuses option combinations that make no sense.
func (o *importOptions) check(cmd *cobra.Command) error {
	for _, group := range [][]string{
		{"pin", "keep-passphrase", "no-pin"},
		{"file", "replace"},
		{"for", "new-tpm"},
		{"for", "retire"},
		{"for", "replace"},
	} {
		var both []string
		for _, name := range group {
			if cmd.Flags().Changed(name) {
				both = append(both, "--"+name)
			}
		}
		if len(both) > 1 {
			return usage("%s do not go together", strings.Join(both, " and "))
		}
	}
	if cmd.Flags().Changed("for") && o.target == "" {
		return usage("--for: the file's name is empty")
	}
	if o.comment != nil && plain(*o.comment) != *o.comment {
		return usage("-C: the comment must be one line of printable characters")
	}
	if o.file != nil {
		return checkName(*o.file)
	}
	return nil
}

// saysPIN is whether the command line says what becomes of the PIN.
func (o *importOptions) saysPIN() bool { return o.pin != nil || o.keepPassphrase || o.noPIN }
