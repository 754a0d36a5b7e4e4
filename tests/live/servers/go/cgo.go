package main

// Linked in for the program that is built with cgo: by the system's linker, beside C.

// int answer(void) { return 42; }
import "C"

func init() {
	if C.answer() != 42 {
		panic("C is not there")
	}
}
