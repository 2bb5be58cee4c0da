// Package tpmkey makes and uses keys in a TPM 2.0.
//
// A key is a file ([keyfile.TPMKey]) wrapped by a storage key of the TPM. For
// one signature it is put into the TPM, used and flushed: at the first use by
// TPM2_Load under its parent, from then on by TPM2_ContextLoad of the context
// that was saved then, so that three commands make a signature and no parent is
// needed. An auth value (the user's PIN) is proved by HMAC in a salted session,
// which is kept while signatures come.
//
// A private key that exists already is wrapped to a storage key ([Wrap]), which
// needs its public part only, and imported in the TPM that has it
// ([TPM.Import]); [TPM.ImportPrivate] does both.
//
// Start with [New], then [TPM.Create] and [TPM.Key]. No handle leaves the
// package: whatever is in the TPM because of it exists inside a bracket
// (withParent, withLoaded) that flushes it. Turns are given in order of
// arrival; an idle TPM holds nothing of ours, and its device is closed.
//
// The package knows nothing of SSH, sockets, prompts or directories, and never
// logs. Comments cite the TPM 2.0 Library specification, revision 1.59, by
// part and section.
package tpmkey
