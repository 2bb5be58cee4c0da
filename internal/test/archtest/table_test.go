package archtest

// row describes one package.
type row struct {
	pkg     string   // its directory below the module's root
	purpose string   // completes "Package NAME …", the first sentence of its comment
	imports []string // what it may import besides the standard library; "x/..." is everything below x
	tests   []string // what its tests may import as well
}

// table lists every package, from the top of the program to the bottom. A
// package may only import packages in rows below its own. To add a package, add
// its row.
var table = []row{
	{
		pkg:     "cmd/tpm-agent",
		purpose: "parses the command line: one file for each command, which turns flags into options and makes one call",
		imports: []string{
			"internal/daemon", "internal/keyops", "internal/inspect", "internal/control", "internal/pinsource", "internal/term",
			"internal/tcti", "github.com/spf13/cobra", "github.com/spf13/pflag",
		},
		tests: []string{"agent", "tpmkey", "keyfile", "internal/..."},
	},

	// What the commands do.
	{
		pkg:     "internal/daemon",
		purpose: "assembles the agent and runs it: sources, signals, log and units",
		imports: []string{
			"internal/keyops", "internal/control", "internal/pinsource", "internal/term",
			"agent", "internal/prompt", "internal/prompt/...", "internal/consent", "internal/upstream", "internal/restrict",
			"internal/softkey", "internal/ask", "internal/refusal", "internal/peer", "internal/sshkey", "internal/wire",
			"internal/keydir", "internal/parents", "internal/knownhosts", "internal/logind", "internal/boottime",
			"internal/socket", "internal/tcti", "tpmkey", "keyfile",
			"github.com/coreos/go-systemd/v22/daemon", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix",
		},
	},
	{
		pkg:     "internal/keyops",
		purpose: "creates, imports, wraps, changes and retires keys, without flags or printing",
		imports: []string{
			"internal/control", "internal/pinsource", "internal/term", "internal/consent", "internal/ask", "internal/sshkey",
			"internal/keydir", "internal/parents", "internal/privkey", "internal/randomart", "internal/tcti", "tpmkey", "keyfile",
			"golang.org/x/crypto/ssh", "golang.org/x/sys/unix",
		},
	},
	{
		pkg:     "internal/inspect",
		purpose: "describes a key file and what its TPM can do with it",
		imports: []string{"internal/term", "internal/sshkey", "internal/parents", "internal/tcti", "tpmkey", "keyfile", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/control",
		purpose: "defines our own protocol extensions: what the agent answers and what the commands ask",
		imports: []string{
			"internal/pinsource", "internal/term", "agent", "internal/consent", "internal/restrict", "internal/softkey", "internal/ask",
			"internal/refusal", "internal/peer", "internal/sshkey", "internal/wire", "internal/knownhosts",
			"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent",
		},
	},
	{
		pkg:     "internal/pinsource",
		purpose: "takes a PIN from a file, a descriptor, a credential or the user",
		imports: []string{"internal/term", "internal/ask", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/term",
		purpose: "talks to the user at the terminal: errors with hints, questions and tables",
		imports: []string{"internal/prompt/tty", "golang.org/x/sys/unix", "golang.org/x/term"},
	},

	// The agent.
	{
		pkg:     "agent",
		purpose: "serves connections: looks up a key, checks, asks, signs and answers",
		imports: []string{
			"internal/consent", "internal/upstream", "internal/restrict", "internal/softkey", "internal/ask",
			"internal/refusal", "internal/peer", "internal/sshkey", "internal/wire",
			"golang.org/x/crypto/argon2", "golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent",
		},
	},
	{
		pkg:     "internal/prompt",
		purpose: "asks the user in the first way that works, and words the question",
		imports: []string{"internal/prompt/...", "internal/ask", "internal/peer", "golang.org/x/sys/unix", "golang.org/x/term"},
	},
	{
		pkg:     "internal/prompt/askpass",
		purpose: "asks through the program named by SSH_ASKPASS",
		imports: []string{"internal/ask", "internal/peer", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/prompt/pinentry",
		purpose: "asks through GnuPG's pinentry",
		imports: []string{"internal/prompt/tty", "internal/ask", "internal/peer", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/prompt/systemd",
		purpose: "asks through systemd's password agents",
		imports: []string{"internal/ask", "internal/peer", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/prompt/tty",
		purpose: "asks on a terminal",
		imports: []string{"internal/ask", "internal/peer", "golang.org/x/sys/unix", "golang.org/x/term"},
	},
	{
		pkg:     "internal/consent",
		purpose: "runs PIN rounds and remembers PINs and grants",
		imports: []string{"internal/upstream", "internal/restrict", "internal/softkey", "internal/ask", "internal/refusal", "internal/peer", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/upstream",
		purpose: "passes requests on to other agents",
		imports: []string{"internal/restrict", "internal/ask", "internal/refusal", "internal/peer", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent"},
	},
	{
		pkg:     "internal/softkey",
		purpose: "keeps private keys in locked memory and signs with them",
		imports: []string{"internal/refusal", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/restrict",
		purpose: "decides from constraints and bindings what a key may sign, and tells what a signature is for",
		imports: []string{"internal/ask", "internal/refusal", "internal/peer", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/ask",
		purpose: "defines what the user is asked",
		imports: []string{"internal/refusal", "internal/peer", "internal/sshkey", "internal/wire", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/refusal",
		purpose: "names why requests are refused, and keeps the latest refusals",
		imports: []string{"internal/peer", "internal/sshkey", "internal/wire"},
	},
	{
		pkg:     "internal/peer",
		purpose: "identifies the process at the other end of a connection",
		imports: []string{"golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/sshkey",
		purpose: "reads and names SSH public keys",
		imports: []string{"internal/wire", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/wire",
		purpose: "encodes and decodes the SSH agent protocol",
		imports: []string{"golang.org/x/crypto/ssh"},
	},

	// Files and the machine.
	{
		pkg:     "internal/keydir",
		purpose: "lists the key files that exist right now",
		imports: []string{"keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/parents",
		purpose: "remembers which storage key each key was loaded under",
		imports: []string{"keyfile", "golang.org/x/crypto/ssh", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/privkey",
		purpose: "reads private keys written by other programs",
		imports: []string{"keyfile", "golang.org/x/crypto/cryptobyte", "golang.org/x/crypto/cryptobyte/asn1", "golang.org/x/crypto/scrypt", "golang.org/x/crypto/ssh"},
	},
	{
		pkg:     "internal/knownhosts",
		purpose: "looks up host keys and host names in known_hosts files",
		imports: []string{"golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/knownhosts", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/logind",
		purpose: "watches logind for the moments when the machine sleeps or the screen is locked",
		imports: []string{"github.com/godbus/dbus/v5", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/boottime",
		purpose: "is a clock that keeps running while the machine sleeps",
		imports: []string{"golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/randomart",
		purpose: "draws the picture that ssh-keygen shows for a new key",
	},
	{
		pkg:     "internal/socket",
		purpose: "listens where only the user can connect",
		imports: []string{"golang.org/x/sys/unix", "github.com/coreos/go-systemd/v22/activation"},
	},

	// The TPM.
	{
		pkg:     "tpmkey",
		purpose: "creates and uses keys in a TPM",
		imports: []string{"keyfile", "github.com/google/go-tpm/...", "golang.org/x/crypto/cryptobyte", "golang.org/x/sync/semaphore"},
		tests:   []string{"internal/tcti"},
	},
	{
		pkg:     "internal/tcti",
		purpose: "opens a TPM by its address",
		imports: []string{"internal/softtpm", "golang.org/x/sys/unix"},
	},
	{
		pkg:     "internal/softtpm",
		purpose: "runs the private software TPM",
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
		purpose: "measures tpm-agent through the socket of a running daemon, against the same work done with bare TPM commands",
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
		purpose: "skips tests whose programs are not installed, and names the packages that contain them",
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
		imports: []string{"internal/wire", "internal/sshkey", "golang.org/x/crypto/ssh", "golang.org/x/crypto/ssh/agent"},
	},
	{
		pkg:     "internal/test/tpmtest",
		purpose: "gives each test its own swtpm, and counts or fails its commands",
		imports: []string{"internal/test/needs", "internal/softtpm", "internal/tcti", "github.com/google/go-tpm/...", "golang.org/x/sys/unix"},
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

// pending lists packages that do not yet follow the table, or do not exist yet.
// They may import anything and have any size; only package state is checked.
// Delete an entry as soon as its package complies.
var pending = []string{
	"agent",
	"cmd/tpm-agent",
	"internal/ask",
	"internal/boottime",
	"internal/child",
	"internal/consent",
	"internal/control",
	"internal/daemon",
	"internal/inspect",
	"internal/keydir",
	"internal/keyops",
	"internal/knownhosts",
	"internal/logind",
	"internal/parents",
	"internal/peer",
	"internal/pinentry",
	"internal/pinsource",
	"internal/privkey",
	"internal/procstat",
	"internal/prompt",
	"internal/prompt/askpass",
	"internal/prompt/pinentry",
	"internal/prompt/systemd",
	"internal/prompt/tty",
	"internal/randomart",
	"internal/refusal",
	"internal/restrict",
	"internal/socket",
	"internal/softkey",
	"internal/softtpm",
	"internal/sshkey",
	"internal/tcti",
	"internal/term",
	"internal/test/bench",
	"internal/test/sshtest",
	"internal/upstream",
	"internal/wire",
	"keyfile",
	"tpmkey",
}
