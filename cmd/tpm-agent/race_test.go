//go:build race

package main

// raceDetector reports whether the race detector is on. Its memory use grows, so tests
// of memory use must skip it.
const raceDetector = true
