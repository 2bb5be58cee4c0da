// Package vm holds the tests that run against the kernel's own TPM driver
// and resource manager, in a virtual machine: /dev/tpmrm0 and /dev/tpm0. No
// socket to a software TPM can stand in for those two: they are what keeps
// handles of programs apart, answers EBUSY, and returns EINTR.
//
// The script run boots the machine; make test-vm calls it. The tests carry the
// build tag vmtest and are no part of go test ./...: they expect to be root on
// a machine of their own, with bin/tpm-agent at /bin/tpm-agent.
package vm
