package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// lastPCR is the highest PCR of a PC (TCG PC Client Platform TPM Profile, 4.6).
const lastPCR = 23

// parsePCRs reads the values of --pcr: numbers, or lists of them.
func parsePCRs(values []string) ([]int, error) {
	var list []int
	for _, value := range values {
		for word := range strings.SplitSeq(value, ",") {
			n, err := strconv.Atoi(word)
			switch {
			case word == "":
				return nil, usage("--pcr %q: a number is missing", plain(value))
			case err != nil || n < 0 || n > lastPCR || word != strconv.Itoa(n):
				return nil, usage("--pcr %s: the PCRs are 0 to %d", plain(word), lastPCR)
			case slices.Contains(list, n):
				return nil, usage("--pcr: %d is there twice", n)
			}
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// pcrMeaning says what is recorded in a PCR (TCG PC Client Platform Firmware
// Profile, 3.3.4; the Linux TPM PCR Registry), "" where that is nobody's in
// particular.
func pcrMeaning(n int) string {
	meanings := map[int]string{
		0: "firmware", 1: "firmware settings", 2: "drivers from cards", 3: "settings of cards",
		4: "boot loader", 5: "partition table and boot loader settings", 6: "the machine's maker",
		7: "secure boot and its keys", 8: "commands of GRUB", 9: "files that GRUB or the kernel read",
		10: "files measured by the kernel (IMA)", 11: "kernel, as systemd-stub records it",
		12: "kernel command line, as systemd-stub records it", 13: "system extensions", 14: "keys of shim (MOK)",
		15: "machine and disks, as systemd records them", 16: "for debugging", 23: "for applications",
	}
	if n >= 17 && n <= 22 {
		return "late launch (DRTM)"
	}
	return meanings[n]
}

// pcrWords names PCRs for people: "PCR 7" or "PCRs 7, 11".
func pcrWords(list []int) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	if len(list) == 1 {
		return "PCR " + words[0]
	}
	return "PCRs " + strings.Join(words, ", ")
}

// pcrMeanings lists what is recorded in them: "7: secure boot and its keys".
func pcrMeanings(list []int) string {
	var words []string
	for _, n := range list {
		if m := pcrMeaning(n); m != "" {
			words = append(words, fmt.Sprintf("%d: %s", n, m))
		}
	}
	return strings.Join(words, "; ")
}

// warnPCRs tells of PCRs that any program may set back, and of those that nothing
// was recorded in: on machines whose firmware measures nothing, and in software
// TPMs, all of them are. A key bound to nothing else is bound to nothing.
func warnPCRs(w io.Writer, list []bound) {
	for _, b := range list {
		for _, n := range b.PCRs {
			if n == 16 || n == lastPCR {
				fmt.Fprintf(w, "tpm-agent: warning: PCR %d can be reset by any program; it says nothing about how the machine was started\n", n)
			}
		}
		if blankDigest(b.PCRs) == b.Digest {
			fmt.Fprintf(w, "tpm-agent: warning: nothing was recorded in %s when this machine was started, so any start where that is so is the right one for the key\n", pcrWords(b.PCRs))
		}
	}
}

// blankDigest is the digest of PCRs in which nothing was recorded: those of late
// launch have all bits set until there is one, the others none (TCG PC Client
// Platform TPM Profile, 4.6).
func blankDigest(list []int) string {
	var values []byte
	for _, n := range list {
		var value byte
		if n >= 17 && n <= 22 {
			value = 0xFF
		}
		values = append(values, bytes.Repeat([]byte{value}, sha256.Size)...)
	}
	digest := sha256.Sum256(values)
	return hex.EncodeToString(digest[:])
}

// announcePCRs says in one line what a key that is bound to PCRs means.
func announcePCRs(w io.Writer, list []int) error {
	if len(list) == 0 {
		return nil
	}
	are := "are"
	if len(list) == 1 {
		are = "is"
	}
	_, err := fmt.Fprintf(w, "It signs only while %s %s as now (%s). Updates can change that, and nothing but the old state brings the key back: have another way in.\n",
		pcrWords(list), are, pcrMeanings(list))
	return err
}

// pcrHint is the way out for a key whose PCRs do not match.
func pcrHint(e *tpmkey.PCRError) string {
	if e.Signed {
		return fmt.Sprintf("what is recorded there (%s) is not what was signed: whoever signs the policies for this key has to sign one for this state", pcrMeanings(e.PCRs))
	}
	return fmt.Sprintf("what is recorded there (%s) differs from when the key was made, as after an update; the key works again only if that is undone and the machine restarted: else log in another way, make a new key with tpm-agent keygen --pcr, and put it where the old one's public key is",
		pcrMeanings(e.PCRs))
}
