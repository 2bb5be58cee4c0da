package privkey

import (
	"crypto/sha512"
	"encoding/binary"

	//lint:ignore SA1019 bcrypt is made of it
	"golang.org/x/crypto/blowfish"
)

// bcryptSize is what one call of bcryptHash gives, in octets.
const bcryptSize = 32

// bcryptKey is bcrypt_pbkdf of OpenBSD: PBKDF2 over a bcrypt of its own, whose
// outputs are dealt out octet by octet. x/crypto has it in package ssh, for
// itself.
func bcryptKey(passphrase, salt []byte, rounds, size int) []byte {
	blocks := (size + bcryptSize - 1) / bcryptSize
	key := make([]byte, blocks*bcryptSize)
	pass := sha512.Sum512(passphrase)
	defer clear(pass[:])
	for i := range blocks {
		block := bcryptBlock(pass[:], salt, i+1, rounds)
		for j, c := range block {
			key[j*blocks+i] = c
		}
		clear(block[:])
	}
	return key[:size]
}

// bcryptBlock is the n-th block: the first output is of the salt and n, each
// further one of the output before it.
func bcryptBlock(pass, salt []byte, n, rounds int) [bcryptSize]byte {
	first := sha512.Sum512(binary.BigEndian.AppendUint32(append([]byte(nil), salt...), uint32(n)))
	out := bcryptHash(pass, first[:])
	sum := out
	for range rounds - 1 {
		next := sha512.Sum512(out[:])
		out = bcryptHash(pass, next[:])
		for i, c := range out {
			sum[i] ^= c
		}
	}
	return sum
}

// bcryptHash differs from the bcrypt of passwords in its cost, which is fixed,
// in its text, and in the order of octets.
func bcryptHash(pass, salt []byte) (out [bcryptSize]byte) {
	c, err := blowfish.NewSaltedCipher(pass, salt)
	if err != nil {
		panic(err) // for an empty key only, and this is a SHA-512
	}
	for range 64 {
		blowfish.ExpandKey(salt, c)
		blowfish.ExpandKey(pass, c)
	}
	copy(out[:], "OxychromaticBlowfishSwatDynamite")
	for i := 0; i < len(out); i += blowfish.BlockSize {
		for range 64 {
			c.Encrypt(out[i:], out[i:])
		}
	}
	for i := 0; i < len(out); i += 4 {
		binary.LittleEndian.PutUint32(out[i:], binary.BigEndian.Uint32(out[i:]))
	}
	return out
}
