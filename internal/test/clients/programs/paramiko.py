"""HOST PORT USER KNOWN_HOSTS COMMAND: logs in with paramiko and a key of the
agent, runs COMMAND, and prints what it says."""

import sys

import paramiko

host, port, user, known_hosts, command = sys.argv[1:]
with paramiko.SSHClient() as client:
    client.load_host_keys(known_hosts)
    client.connect(host, int(port), user, allow_agent=True, look_for_keys=False, timeout=20)
    _, out, _ = client.exec_command(command, timeout=20)
    sys.stdout.write(out.read().decode())
    sys.exit(out.channel.recv_exit_status())
