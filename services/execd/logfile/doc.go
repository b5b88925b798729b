// Package logfile keeps the output of a container on disk and reads it back.
//
// A log is a folder with the files log.1, log.2, …; only the one with the
// highest number is written, and when it is full the next is begun and the
// oldest removed. Nothing is ever renamed, so a [Position] stays valid while
// its file exists and a reader follows across rotation by counting up.
//
// A file has the text format of the Kubernetes runtime interface, one line a
// chunk:
//
//	2026-01-02T15:04:05.000000000Z stdout F hello
//
// F ends a line of the container's output; P is part of one, to be continued
// without a newline by the next chunk of the same stream. Output is written as
// soon as it is read: a prompt without newline is a P. The bytes come back
// exactly: a newline for each F, nothing for a P.
//
// The writer is the monitor, readers are in execd.
package logfile
