package archtest

// row describes one package.
type row struct {
	pkg     string   // its directory below the module's root
	purpose string   // what follows "Package NAME" in its comment, whose first sentence may add details
	imports []string // what it may import besides the standard library; "x/..." is everything below x
	tests   []string // what its tests may import as well
	vars    bool     // it may have package variables
}

// endToEnd is what tests of commands import: they run an agent and look at the
// TPM and the files.
var endToEnd = []string{"agent", "tpmkey", "keyfile", "internal/..."}

// table lists every package, from the top of the program to the bottom. A
// package may only import packages in rows below its own. To add a package, add
// its row.
var table = []row{
	{
		pkg:     "cmd/tpm-agent",
		purpose: "is an SSH agent whose private keys live in the machine's TPM 2.0",
		imports: []string{
			"internal/cli", "internal/daemon", "internal/keyops", "internal/control", "internal/inspect", "internal/pinsource",
			"internal/term", "github.com/spf13/cobra",
		},
		tests: endToEnd,
	},

	// What the commands do.
	{
		pkg:     "internal/cli",
		purpose: "turns command lines into calls: flags, help, completion and manual pages",
		imports: []string{"internal/control", "internal/term", "github.com/spf13/cobra", "github.com/spf13/pflag"},
		tests:   endToEnd,
	},
	{
		pkg:     "internal/daemon",
		purpose: "assembles the agent and runs it",
		imports: []string{
			"internal/control", "internal/inspect", "internal/pinsource", "agent", "internal/term", "internal/prompt/...", "internal/prompt",
			"internal/consent", "internal/upstream", "internal/restrict", "internal/softkey", "internal/ask", "internal/refusal",
			"internal/peer", "internal/sshkey", "internal/keydir", "internal/parents", "internal/knownhosts", "internal/logind",
			"internal/boottime", "internal/socket", "internal/tcti", "tpmkey", "keyfile", "github.com/coreos/go-systemd/v22/daemon",
			"golang.org/x/crypto/ssh", "golang.org/x/sys/unix",
		},
		tests: endToEnd,
	},
	{
		pkg:     "internal/keyops",
		purpose: "creates, imports, wraps, changes and retires keys",
		imports: []string{
			"internal/control", "internal/inspect", "internal/pinsource", "internal/term", "internal/prompt", "internal/consent",
			"internal/ask", "internal/sshkey", "internal/keydir", "internal/parents", "internal/privkey", "internal/randomart",
			"internal/tcti", "tpmkey", "keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix",
		},
		tests: endToEnd,
	},
	{
		pkg:     "internal/control",
		purpose: "has the extensions of the agent protocol with which tpm-agent's commands talk to a running agent",
		imports: []string{
			"internal/inspect", "internal/pinsource", "agent", "internal/term", "internal/prompt", "internal/consent",
			"internal/restrict", "internal/softkey", "internal/ask", "internal/refusal", "internal/peer", "internal/sshkey",
			"internal/wire", "internal/keydir", "internal/knownhosts", "internal/parents", "internal/tcti", "keyfile",
			"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent", "golang.org/x/sys/unix",
		},
		tests: endToEnd,
	},
	{
		pkg:     "internal/inspect",
		purpose: "describes key files: what they say, and what the TPM and the memory of storage keys say about them",
		imports: []string{"internal/term", "internal/sshkey", "internal/keydir", "internal/parents", "internal/tcti", "tpmkey", "keyfile", "golang.org/x/crypto/ssh"},
		tests:   endToEnd,
	},
	{
		pkg:     "internal/pinsource",
		purpose: "reads PINs from files, descriptors and credentials",
		imports: []string{"internal/term", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/term",
		purpose: "talks to the user of a command: errors with hints, questions, and the words that several commands share",
		imports: []string{
			"internal/prompt", "internal/prompt/tty", "internal/consent", "internal/restrict", "internal/ask", "internal/privkey", "internal/socket",
			"internal/tcti", "tpmkey", "keyfile", "golang.org/x/sys/unix", "golang.org/x/term",
		},
	},

	// The agent.
	{
		pkg:     "agent",
		purpose: "serves connections of the SSH agent protocol (RFC 9987): it looks up a key, checks, asks, signs and answers",
		imports: []string{
			"internal/consent", "internal/upstream", "internal/restrict", "internal/softkey", "internal/ask", "internal/refusal",
			"internal/peer", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh",
		},
	},
	{
		pkg:     "internal/prompt/pinentry",
		purpose: "asks with a pinentry, the dialog program of GnuPG",
		imports: []string{"internal/prompt/tty", "internal/prompt", "internal/ask"},
		tests:   []string{"internal/peer"},
	},
	{
		pkg:     "internal/prompt/askpass",
		purpose: "asks with the program in SSH_ASKPASS",
		imports: []string{"internal/prompt", "internal/ask"},
	},
	{
		pkg:     "internal/prompt/tty",
		purpose: "asks on a terminal",
		imports: []string{"internal/prompt", "internal/ask", "internal/peer", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/prompt/systemd",
		purpose: "asks with systemd-ask-password(1)",
		imports: []string{"internal/prompt", "internal/ask", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/prompt",
		purpose: "asks the user for a PIN, or for consent to use a key",
		imports: []string{"internal/ask", "internal/peer", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/consent",
		purpose: "asks the owner of keys for PINs and consent, and remembers the answers",
		imports: []string{
			"internal/restrict", "internal/softkey", "internal/ask", "internal/refusal", "internal/peer", "internal/sshkey",
			"golang.org/x/crypto/argon2", "golang.org/x/crypto/ssh",
		},
	},
	{
		pkg:     "internal/upstream",
		purpose: "passes requests on to other agents",
		imports: []string{"internal/restrict", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent"},
	},
	{
		pkg:     "internal/softkey",
		purpose: "keeps private keys in locked memory and signs with them",
		imports: []string{"internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/restrict",
		purpose: "decides from constraints and bindings what a key may sign",
		imports: []string{"internal/ask", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/ask",
		purpose: "defines what the user is asked",
		imports: []string{"internal/peer"},
	},
	{
		pkg:     "internal/refusal",
		purpose: "names why requests are refused, and keeps the latest refusals",
		imports: []string{"internal/peer"},
	},
	{
		pkg:     "internal/peer",
		purpose: "identifies the process at the other end of a connection",
		imports: []string{"golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/sshkey",
		purpose: "reads and compares public keys and certificates as OpenSSH does",
		imports: []string{"internal/wire", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/wire",
		purpose: "encodes and decodes the messages of the SSH agent protocol",
	},

	// Files and the machine.
	{
		pkg:     "internal/keydir",
		purpose: "keeps an index of the TPM key files in some directories",
		imports: []string{"keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/parents",
		purpose: "remembers under which storage key each key was loaded",
		imports: []string{"internal/tcti", "tpmkey", "keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/privkey",
		purpose: "reads private keys written by other programs",
		imports: []string{"keyfile", "golang.org/x/crypto/scrypt", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/knownhosts",
		purpose: "looks up the keys of a host in known_hosts files",
		imports: []string{"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/knownhosts", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/logind",
		purpose: "watches systemd-logind (or elogind) for the moments at which secrets must be forgotten",
		imports: []string{"github.com/godbus/dbus/v5", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/boottime",
		purpose: "has a clock that keeps counting while the machine sleeps",
		imports: []string{"golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/randomart",
		purpose: "draws the picture of a key that ssh-keygen shows",
	},
	{
		pkg:     "internal/socket",
		purpose: "makes the agent's listening socket",
		imports: []string{"golang.org/x/sys/unix", "github.com/coreos/go-systemd/v22/activation"},
	},

	// The TPM.
	{
		pkg:     "tpmkey",
		purpose: "creates and uses keys in a TPM 2.0",
		imports: []string{"keyfile", "github.com/google/go-tpm/...", "golang.org/x/crypto/cryptobyte", "golang.org/x/sync/semaphore"},
		tests:   []string{"internal/tcti"},
	},
	{
		pkg:     "internal/tcti",
		purpose: "opens TPMs by the address strings that users of tpm2-tools know",
		imports: []string{"golang.org/x/sys/unix"},
	},
	{
		pkg:     "keyfile",
		purpose: "reads and writes the TPM 2.0 key file",
		imports: []string{"golang.org/x/crypto/cryptobyte", "golang.org/x/crypto/cryptobyte/asn1"},
	},
}

// harnesses lists the packages below internal/test. They have no place in the
// order of the table: only tests and other harnesses import them.
var harnesses = []row{
	{
		pkg:     "internal/test/archtest",
		purpose: "checks the architecture: which package may import which, how large it may be, and what may stand at package level",
	},
	{
		pkg:     "internal/test/bench",
		purpose: "measures tpm-agent as its users meet it",
		imports: []string{"tpmkey", "keyfile", "internal/...", "github.com/...", "golang.org/x/..."},
	},
	{
		pkg:     "internal/test/bustest",
		purpose: "runs a message bus for tests, with a simulated logind on it",
		imports: []string{"internal/test/needs", "github.com/godbus/dbus/v5"},
	},
	{
		pkg:     "internal/test/clients",
		purpose: "logs in as a Go program does, with golang.org/x/crypto/ssh and the keys of the agent in $SSH_AUTH_SOCK",
		imports: []string{"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent", "golang.org/x/crypto/ssh/knownhosts", "golang.org/x/sync/errgroup"},
	},
	{
		pkg:     "internal/test/needs",
		purpose: "gives tests the programs and disks that they need, or skips them and says what is missing",
	},
	{
		pkg:     "internal/test/paths",
		purpose: "counts the functions, files and packages that a signature or a new key passes through",
		imports: []string{"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent"},
	},
	{
		pkg:     "internal/test/ptytest",
		purpose: "runs programs on a pseudo-terminal, reads their screen and types",
		imports: []string{"golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/test/sshtest",
		purpose: "has keys, hosts and messages for tests of the SSH agent protocol",
		imports: []string{"internal/socket", "internal/wire", "internal/sshkey", "golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent"},
		vars:    true, // keys and certificates, which are expensive to make
	},
	{
		pkg:     "internal/test/tpmtest",
		purpose: "gives each test its own swtpm, and counts or fails its commands",
		imports: []string{"internal/test/needs", "internal/tcti", "github.com/google/go-tpm/...", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/test/vm",
		purpose: "tests the agent against the kernel's TPM driver and resource manager, in a virtual machine",
		tests:   []string{"agent", "tpmkey", "keyfile", "internal/..."},
	},
}

// inTests may be imported by every test, in addition to its row. Tests may also
// use any module that go.mod lists, to compare with OpenSSH's formats or
// go-tpm's structures.
var inTests = []string{"internal/test/...", "github.com/...", "golang.org/x/...", "go.uber.org/goleak"}
