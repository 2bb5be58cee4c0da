// Package vm tests the agent against the kernel's TPM driver and resource
// manager, in a virtual machine. No socket to a software TPM can stand in for
// /dev/tpmrm0 and /dev/tpm0: only they keep the handles of programs apart,
// answer EBUSY, and return EINTR.
//
// `make test-vm` calls the script run, which boots the machine. The tests have
// the build tag vmtest, so go test ./... leaves them out: they expect to be root
// on a machine of their own, with the agent at /bin/tpm-agent.
package vm
