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
		Short: "Import an existing private key into the TPM",
		Long:  importHelp,
		Example: `  tpm-agent import ~/.ssh/id_rsa              # makes id_rsa.tpm beside it
  tpm-agent import --keep-passphrase --retire ~/.ssh/id_rsa
  tpm-agent import --replace ~/.ssh/id_rsa    # id_rsa becomes the TPM key
  ssh laptop tpm-agent srk > laptop.srk       # for another machine:
  tpm-agent import --for laptop.srk ~/.ssh/id_rsa
  tpm-agent import id_rsa.wrapped.tpm         # on the other machine`,
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
	f.StringP("passphrase", "P", "", "`PASSPHRASE` of FILE, or the PIN of a wrapped key\n(default: asked for)")
	f.StringP("pin", "N", "", "the new `PIN`; empty for none (default: asked for)")
	f.BoolVar(&o.keepPassphrase, "keep-passphrase", false, "use the passphrase as the PIN")
	f.BoolVar(&o.noPIN, "no-pin", false, "set no PIN; same as -N ''")
	f.StringP("comment", "C", "", "`COMMENT` in the public key (default: from the\nkey, or from FILE.pub)")
	f.StringP("file", "f", "", "save as `OUT`.tpm and OUT.pub (default FILE.tpm\nand FILE.pub)")
	f.BoolVar(&o.retire, "retire", false, "then move FILE to where ssh does not look")
	f.BoolVar(&o.replace, "replace", false, "as --retire, and put the TPM key in FILE's place")
	f.StringVar(&o.target, "for", "", "wrap for another machine's TPM: `SRK` is the file\nthat tpm-agent srk printed there")
	f.StringVar(&o.parent, "parent", "owner", "storage `KEY` that wraps it: owner, endorsement,\nor a persistent handle 0x81……")
	f.BoolVar(&o.newTPM, "new-tpm", false, "accept that the TPM was cleared or replaced")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only questions and errors")
	for _, free := range []string{"comment", "pin", "passphrase"} {
		mustComplete(cmd, free)
	}
	mustComplete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const importHelp = `Imports an RSA or ECDSA private key into the TPM. The public key stays the
same.

FILE is a private key of ssh-keygen or OpenSSL, or a key that was wrapped for
this TPM with --for. The old file stays, and anyone who reads it has the key:
--retire moves it away, and --replace also puts the TPM key in its place.
Nothing is overwritten. Details: tpm-agent man import.`

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
