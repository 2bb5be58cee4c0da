/* login HOST PORT USER SSHDIR COMMAND: logs in with libssh and a key of the
 * agent, runs COMMAND, and prints what it says. known_hosts is in SSHDIR. */
#include <libssh/libssh.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void die(ssh_session session, const char *what)
{
	fprintf(stderr, "libssh %s: %s: %s\n", ssh_version(0), what, ssh_get_error(session));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	char output[4096];
	int n, no = 0;
	unsigned int port = strtoul(argv[2], NULL, 10);
	ssh_session session = ssh_new();
	ssh_options_set(session, SSH_OPTIONS_PROCESS_CONFIG, &no);
	ssh_options_set(session, SSH_OPTIONS_HOST, argv[1]);
	ssh_options_set(session, SSH_OPTIONS_PORT, &port);
	ssh_options_set(session, SSH_OPTIONS_USER, argv[3]);
	ssh_options_set(session, SSH_OPTIONS_SSH_DIR, argv[4]);
	if (ssh_connect(session) != SSH_OK)
		die(session, "connecting");
	if (ssh_session_is_known_server(session) != SSH_KNOWN_HOSTS_OK)
		die(session, "the host's key is not the one in known_hosts");
	if (ssh_userauth_agent(session, NULL) != SSH_AUTH_SUCCESS)
		die(session, "logging in with the agent");
	ssh_channel channel = ssh_channel_new(session);
	if (ssh_channel_open_session(channel) != SSH_OK || ssh_channel_request_exec(channel, argv[5]) != SSH_OK)
		die(session, "running the command");
	while ((n = ssh_channel_read(channel, output, sizeof output, 0)) > 0)
		fwrite(output, 1, n, stdout);
	if (n < 0 || ssh_channel_get_exit_status(channel) != 0)
		die(session, "the command failed");
	ssh_channel_free(channel);
	ssh_disconnect(session);
	ssh_free(session);
	return 0;
}
