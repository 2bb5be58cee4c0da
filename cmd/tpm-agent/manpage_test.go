package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPage is the page of a command, in the language of man(7): what --help says,
// and the sections that only a manual page has.
func manPage(cmd *cobra.Command, date string) string {
	var b strings.Builder
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 %q tpm-agent \"User Commands\"\n", strings.ToUpper(roff(name)), date)
	fmt.Fprintf(&b, ".nh\n.SH NAME\n%s \\- %s\n", roff(name), roff(lowerFirst(cmd.Short)))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.nf\n%s\n.fi\n", synopsis(cmd))
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", manText(cmd.Long))
	if !cmd.HasParent() {
		b.WriteString(".SH COMMANDS\n" + manCommands(cmd))
	}
	b.WriteString(".SH OPTIONS\n" + manFlags(cmd))
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n%s", literal(strings.Split(cmd.Example, "\n")))
	}
	fmt.Fprintf(&b, ".SH EXIT STATUS\n%s", exitStatus(cmd))
	for _, section := range []struct {
		title string
		items []manItem
	}{{"ENVIRONMENT", manEnvironment}, {"FILES", manFiles}} {
		var items strings.Builder
		for _, item := range section.items {
			if item.of(cmd) {
				fmt.Fprintf(&items, ".TP\n\\fB%s\\fR\n%s\n", roff(item.name), manLine(item.text))
			}
		}
		if items.Len() > 0 {
			fmt.Fprintf(&b, ".SH %s\n%s", section.title, items.String())
		}
	}
	b.WriteString(".SH SEE ALSO\n" + seeAlso(cmd))
	return b.String()
}

// manItem is an environment variable or a file, with the commands that use it; *
// stands for all, and for the page of tpm-agent itself.
type manItem struct{ name, commands, text string }

func (i manItem) of(cmd *cobra.Command) bool {
	names := strings.Fields(i.commands)
	return slices.Contains(names, cmd.Name()) || slices.Contains(names, "*") && !cmd.HasParent()
}

const (
	usesTPM   = "serve keygen import srk inspect list passwd"
	asksAgent = "add remove unlock lock why list"
)

var manEnvironment = []manItem{
	{"TPM_AGENT_TPM", "* " + usesTPM, "The address of the TPM, where --tpm is not given."},
	{"SSH_AUTH_SOCK", "* " + asksAgent, "The socket of the agent to talk to, where --socket is not given."},
	{"SSH_AGENT_PID", "* serve", "The process that serve -k ends."},
	{"XDG_RUNTIME_DIR", "* serve env " + asksAgent, "The directory of the agent's socket, tpm-agent/agent.sock, where no other is given. A login by ssh(1) or on a desktop sets it; su(1) and sudo(8) do not."},
	{"XDG_STATE_HOME", "* serve import keygen list inspect passwd", "Where retired keys, the memory of storage keys and the state of the software TPM are kept, below tpm-agent; ~/.local/state if it is not set."},
	{"HOME", "* serve keygen list import", "The home directory, in which .ssh is."},
	{"SHELL", "* env serve", "The form in which commands for the shell are printed, where no option says it."},
	{"TMPDIR", "* serve", "Where a COMMAND's socket is made if there is no XDG_RUNTIME_DIR; /tmp if it is not set."},
	{"SSH_ASKPASS", "* serve", "The program that asks for PINs and consent, in a window."},
	{"SSH_ASKPASS_REQUIRE", "* serve", "never, prefer or force: whether that program is used; see above for the order."},
	{"DISPLAY, WAYLAND_DISPLAY, XAUTHORITY", "* serve", "The display on which there are windows."},
	{"GNUPGHOME", "* serve", "Where gpg-agent.conf is, which may name a pinentry; ~/.gnupg if it is not set."},
	{"CREDENTIALS_DIRECTORY", "* serve unlock passwd", "Where systemd puts credentials, for PINs from credential:NAME."},
	{"DBUS_SYSTEM_BUS_ADDRESS", "* serve", "The bus on which systemd-logind tells of sleep and locked screens, if it is not the usual one."},
	{"LISTEN_FDS, LISTEN_PID, NOTIFY_SOCKET", "* serve", "What systemd passes to a service: its socket, and where to say that it is ready."},
}

var manFiles = []manItem{
	{"~/.ssh/NAME.tpm", "* serve keygen import list", "A key, wrapped by the TPM: a TPM 2.0 key file (TSS2 PRIVATE KEY). Any name will do."},
	{"~/.ssh/NAME.pub", "* serve keygen import list pub", "Its public key; the comment is from there."},
	{"~/.ssh/NAME-cert.pub", "* serve add", "A certificate for it, which is offered too."},
	{"$XDG_STATE_HOME/tpm-agent/storage-keys", "* serve keygen import list inspect passwd", "Which storage keys of which TPM the keys were loaded under. Text; it can be removed. Earlier versions kept a file .tpm-agent-parents beside the keys, which is still read."},
	{"$XDG_RUNTIME_DIR/tpm-agent/agent.sock", "* serve env", "The agent's socket."},
	{"$XDG_STATE_HOME/tpm-agent/retired/", "* import", "Where --retire and --replace put old private keys."},
	{"/dev/tpmrm0", "* " + usesTPM, "The TPM, by the kernel's resource manager."},
	{"~/.ssh/known_hosts, /etc/ssh/ssh_known_hosts", "serve add", "The keys of hosts."},
	{"~/.config/tpm-agent/serve.conf", "* serve", "Options of the systemd user service."},
}

// exitStatus is what a script can rely on.
func exitStatus(cmd *cobra.Command) string {
	lines := []string{
		"0", "The command did what it says.",
		"1", "It failed; standard error says why.",
		"2", "The command line makes no sense.",
	}
	switch cmd.Name() {
	case "keygen", "import", "tpm-agent":
		lines = append(lines, "3", "The key is of a kind that the TPM, or tpm-agent, does not take.")
	}
	lines = append(lines, "128+n", "Signal n ended it.")
	if cmd.Name() == "serve" {
		lines = append(lines, "other", "With a COMMAND: its own status, or 128+n if signal n ended it.")
	}
	var b strings.Builder
	for i := 0; i < len(lines); i += 2 {
		fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", lines[i], manLine(lines[i+1]))
	}
	return b.String()
}

// seeAlso refers to the other pages, and to the programs of OpenSSH that a
// command takes the place of or goes with.
func seeAlso(cmd *cobra.Command) string {
	openssh := map[string]string{
		"tpm-agent": "ssh ssh-add ssh-agent ssh-keygen", "serve": "ssh-agent ssh-add pinentry",
		"keygen": "ssh-keygen ssh-copy-id", "import": "ssh-keygen", "add": "ssh-add", "remove": "ssh-add",
		"unlock": "ssh-add", "lock": "ssh-add", "list": "ssh-add", "passwd": "ssh-keygen", "pub": "ssh-copy-id",
		"why": "ssh-add", "env": "ssh-agent", "man": "man",
	}
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, cmd.Root().Name())
	}
	for _, other := range cmd.Commands() {
		if other.Name() != "help" {
			pages = append(pages, "tpm-agent-"+other.Name())
		}
	}
	pages = append(pages, strings.Fields(openssh[cmd.Name()])...)
	for i, page := range pages {
		pages[i] = ".BR " + roff(page) + " (1)"
	}
	return strings.Join(pages, " ,\n") + "\n"
}

func manCommands(root *cobra.Command) string {
	var b strings.Builder
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			fmt.Fprintf(&b, ".TP\n.BR tpm\\-agent\\-%s (1)\n%s.\n", roff(cmd.Name()), roff(cmd.Short))
		}
	}
	return b.String()
}

func synopsis(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return "\\fBtpm\\-agent\\fR \\fICOMMAND\\fR [\\fIoptions\\fR] [\\fIarguments\\fR]"
	}
	_, arguments, _ := strings.Cut(cmd.Use, " ")
	return strings.TrimSpace(fmt.Sprintf("\\fB%s\\fR [\\fIoptions\\fR] %s", roff(cmd.CommandPath()), roff(arguments)))
}

// manFlags are the options as --help shows them, those of all commands at the end.
func manFlags(cmd *cobra.Command) string {
	var b strings.Builder
	show := func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, text := pflag.UnquoteUsage(f)
		var line string
		if f.Shorthand != "" {
			line = "\\fB\\-" + f.Shorthand + "\\fR, "
		}
		line += "\\fB\\-\\-" + roff(f.Name) + "\\fR"
		if value != "" {
			line += " \\fI" + roff(value) + "\\fR"
		}
		if !slices.Contains([]string{"", "0", "false", "[]"}, f.DefValue) {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", line, manLine(text))
	}
	cmd.LocalFlags().VisitAll(show)
	cmd.InheritedFlags().VisitAll(show)
	return b.String()
}

// manText is a help text: paragraphs are filled, and what is indented stays as it
// is.
func manText(text string) string {
	var b strings.Builder
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		var fixed []string
		flush := func() {
			if len(fixed) > 0 {
				b.WriteString(literal(fixed))
			}
			fixed = nil
		}
		for line := range strings.Lines(paragraph + "\n") {
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "  ") {
				fixed = append(fixed, line)
				continue
			}
			flush()
			b.WriteString(manLine(line) + "\n")
		}
		flush()
	}
	return b.String()
}

// literal are lines that are not filled.
func literal(lines []string) string {
	var b strings.Builder
	b.WriteString(".sp 0.5v\n.RS 4\n.nf\n")
	for _, line := range lines {
		b.WriteString(manLine(strings.TrimPrefix(line, "  ")) + "\n")
	}
	b.WriteString(".fi\n.RE\n")
	return b.String()
}

// manLine is a line of text, which must not be taken for a request.
func manLine(line string) string {
	line = roff(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}

// roff is text in which nothing has a meaning: hyphens can be copied as typed, and
// so can quotes.
func roff(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "…", `\&...`).Replace(s)
}

func lowerFirst(s string) string {
	if strings.HasPrefix(s, "An ") || strings.HasPrefix(s, "A ") || len(s) > 1 && s[1] >= 'a' {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}
