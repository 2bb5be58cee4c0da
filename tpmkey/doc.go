// Package tpmkey creates and uses keys in a TPM 2.0.
//
// A key is a file ([keyfile.TPMKey]) wrapped by a storage key of the TPM. For each
// signature the key is put into the TPM, used and flushed. The first time that takes
// TPM2_Load under its parent. The loaded key is then saved with TPM2_ContextSave, and
// every later signature takes three commands and no parent: TPM2_ContextLoad,
// TPM2_Sign and TPM2_FlushContext. An auth value (the user's PIN) is proved by HMAC
// in a salted session, which stays open as long as signatures keep coming.
//
// [Wrap] encrypts an existing private key to a storage key, of which it needs the
// public part only. [TPM.Import] imports the result into the TPM that has the storage
// key. [TPM.ImportPrivate] does both.
//
// Start with [New], then [TPM.Create] and [TPM.Key]. The package exposes no handles:
// whatever it puts into the TPM is flushed by the function that put it there
// (withParent, withLoaded). Callers get their turns in order of arrival. An idle TPM
// holds nothing of ours, and its device is closed.
//
// The package knows nothing of SSH, sockets, prompts or directories, and never logs.
// Comments cite the TPM 2.0 Library specification, revision 1.59, by part and
// section.
package tpmkey
