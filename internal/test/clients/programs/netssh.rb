# HOST PORT USER KNOWN_HOSTS COMMAND: logs in with net-ssh and a key of the
# agent, runs COMMAND, and prints what it says.
require "net/ssh"

host, port, user, known_hosts, command = ARGV
options = {
  port: port.to_i, auth_methods: ["publickey"], keys: [], non_interactive: true, config: false,
  user_known_hosts_file: known_hosts, global_known_hosts_file: "/dev/null", verify_host_key: :always
}
Net::SSH.start(host, user, options) do |session|
  out = session.exec!(command)
  print out
  exit out.exitstatus
end
