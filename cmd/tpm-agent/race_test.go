//go:build race

package main

// raceDetector: its own memory grows with everything that happens.
const raceDetector = true
