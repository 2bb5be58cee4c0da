package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPage returns the page of a command in the language of man(7). body is the
// description, which is written by hand. The rest comes from the command and the
// tables below.
func manPage(cmd *cobra.Command, body, date string) string {
	var b strings.Builder
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 %q tpm-agent \"User Commands\"\n", strings.ToUpper(roff(name)), date)
	fmt.Fprintf(&b, ".nh\n.SH NAME\n%s \\- %s\n", roff(name), roff(lowerFirst(cmd.Short)))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.nf\n%s\n.fi\n", synopsis(cmd))
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", manText(body))
	if !cmd.HasParent() {
		b.WriteString(".SH COMMANDS\n" + manCommands(cmd))
	}
	b.WriteString(".SH OPTIONS\n" + manFlags(cmd))
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n%s", unfilled(strings.Split(cmd.Example, "\n")))
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

// A manItem is an environment variable or a file, with the commands that use it. *
// stands for the page of tpm-agent itself.
type manItem struct{ name, commands, text string }

// of reports whether the item belongs on the page of a command.
func (i manItem) of(cmd *cobra.Command) bool {
	names := strings.Fields(i.commands)
	return slices.Contains(names, cmd.Name()) || slices.Contains(names, "*") && !cmd.HasParent()
}

const (
	usesTPM   = "serve keygen import srk inspect list passwd"
	asksAgent = "add remove unlock lock why list"
)

var manEnvironment = []manItem{
	{"TPM_AGENT_TPM", "* " + usesTPM, "The address of the TPM. --tpm overrides it."},
	{"SSH_AUTH_SOCK", "* " + asksAgent, "The socket of the agent to talk to. --socket overrides it."},
	{"SSH_AGENT_PID", "* serve", "The process that serve -k ends."},
	{"XDG_RUNTIME_DIR", "* serve env " + asksAgent, "The directory of the agent's default socket, tpm-agent/agent.sock. A login by ssh(1) or on a desktop sets it; su(1) and sudo(8) do not."},
	{"XDG_STATE_HOME", "* serve import keygen list inspect passwd", "The directory that holds tpm-agent/, with retired keys, the memory of storage keys and the state of the software TPM. The default is ~/.local/state."},
	{"HOME", "* serve keygen list import", "The home directory, which contains .ssh."},
	{"SHELL", "* env serve", "The shell for which commands are printed. -s, -c and --fish override it."},
	{"TMPDIR", "* serve", "The directory for the socket of a COMMAND's agent if XDG_RUNTIME_DIR is not set. The default is /tmp."},
	{"SSH_ASKPASS", "* serve", "The program that asks for PINs and consent in a window."},
	{"SSH_ASKPASS_REQUIRE", "* serve", "never, prefer or force: when to use that program; see tpm-agent-serve(1)."},
	{"DISPLAY, WAYLAND_DISPLAY, XAUTHORITY", "* serve", "The display for windows."},
	{"GNUPGHOME", "* serve", "The directory of gpg-agent.conf, which may name a pinentry. The default is ~/.gnupg."},
	{"CREDENTIALS_DIRECTORY", "* serve unlock passwd", "The directory of systemd credentials, for PINs from credential:NAME."},
	{"DBUS_SYSTEM_BUS_ADDRESS", "* serve", "The address of the bus on which systemd-logind reports suspend and screen lock, if it is not the standard one."},
	{"LISTEN_FDS, LISTEN_PID, NOTIFY_SOCKET", "* serve", "Set by systemd for a service: the sockets that it passes, and where the service reports that it is ready."},
}

var manFiles = []manItem{
	{"~/.ssh/NAME.tpm", "* serve keygen import list", "A key, wrapped by the TPM: a TPM 2.0 key file (TSS2 PRIVATE KEY). The file may have any name."},
	{"~/.ssh/NAME.pub", "* serve keygen import list pub", "The public key, with its comment."},
	{"~/.ssh/NAME-cert.pub", "* serve add", "A certificate for the key. The agent offers it too."},
	{"$XDG_STATE_HOME/tpm-agent/storage-keys", "* serve keygen import list inspect passwd", "A text file that records under which storage keys of which TPM the keys were loaded. You can delete it. A file .tpm-agent-parents that an earlier version left beside the keys is still read."},
	{"$XDG_RUNTIME_DIR/tpm-agent/agent.sock", "* serve env", "The agent's socket."},
	{"$XDG_STATE_HOME/tpm-agent/retired/", "* import", "The directory to which --retire and --replace move old private keys."},
	{"/dev/tpmrm0", "* " + usesTPM, "The TPM, through the kernel's resource manager."},
	{"~/.ssh/known_hosts, /etc/ssh/ssh_known_hosts", "serve add", "The keys and names of hosts."},
	{"~/.config/tpm-agent/serve.conf", "* serve", "Options of the systemd user service."},
}

// exitStatus returns the exit statuses that a script can rely on.
func exitStatus(cmd *cobra.Command) string {
	lines := []string{
		"0", "The command succeeded.",
		"1", "The command failed; standard error says why.",
		"2", "The command line is invalid.",
	}
	switch cmd.Name() {
	case "keygen", "import", "tpm-agent":
		lines = append(lines, "3", "The TPM, or tpm-agent, does not support this kind of key.")
	}
	lines = append(lines, "128+n", "Signal n ended the command.")
	if cmd.Name() == "serve" {
		lines = append(lines, "other", "With a COMMAND: the exit status of the COMMAND, or 128+n if signal n ended it.")
	}
	var b strings.Builder
	for i := 0; i < len(lines); i += 2 {
		fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", lines[i], manLine(lines[i+1]))
	}
	return b.String()
}

// seeAlso refers to the other pages, and to the programs of OpenSSH that the command
// replaces or works with.
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

// manCommands returns the list of commands.
func manCommands(root *cobra.Command) string {
	var b strings.Builder
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			fmt.Fprintf(&b, ".TP\n.BR tpm\\-agent\\-%s (1)\n%s.\n", roff(cmd.Name()), roff(cmd.Short))
		}
	}
	return b.String()
}

// synopsis returns the SYNOPSIS of a command.
func synopsis(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return "\\fBtpm\\-agent\\fR \\fICOMMAND\\fR [\\fIoptions\\fR] [\\fIarguments\\fR]"
	}
	_, arguments, _ := strings.Cut(cmd.Use, " ")
	return strings.TrimSpace(fmt.Sprintf("\\fB%s\\fR [\\fIoptions\\fR] %s", roff(cmd.CommandPath()), roff(arguments)))
}

// manFlags returns the options as --help shows them. Options that all commands have
// come last.
func manFlags(cmd *cobra.Command) string {
	var b strings.Builder
	show := func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, text := pflag.UnquoteUsage(f)
		text = strings.ReplaceAll(text, "\n", " ") // --help breaks lines there
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

// manText turns a body into man(7). Paragraphs are filled, indented lines stay as
// they are, and a paragraph may start with a "# Heading".
func manText(text string) string {
	var b strings.Builder
	for i, paragraph := range strings.Split(text, "\n\n") {
		heading, ok := strings.CutPrefix(paragraph, "# ")
		switch {
		case ok:
			heading, paragraph, _ = strings.Cut(heading, "\n")
			fmt.Fprintf(&b, ".SS %s\n", roff(heading))
		case i > 0:
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

// literal returns lines that are indented and not filled.
func literal(lines []string) string { return ".sp 0.5v\n.RS 4\n" + unfilled(lines) + ".RE\n" }

// unfilled returns lines that man(7) does not fill.
func unfilled(lines []string) string {
	var b strings.Builder
	b.WriteString(".nf\n")
	for _, line := range lines {
		b.WriteString(manLine(strings.TrimPrefix(line, "  ")) + "\n")
	}
	b.WriteString(".fi\n")
	return b.String()
}

// manLine returns a line of text that man(7) does not mistake for a request.
func manLine(line string) string {
	line = roff(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}

// roff escapes s so that a reader can copy hyphens and quotes as they were typed.
func roff(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "…", `\&...`).Replace(s)
}

// lowerFirst returns s with its first letter in lower case.
func lowerFirst(s string) string {
	if strings.HasPrefix(s, "An ") || strings.HasPrefix(s, "A ") || len(s) > 1 && s[1] >= 'a' {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}
