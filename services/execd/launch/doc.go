// Package launch turns what a user asked for, what the image says and what
// imaged and netd handed out into a plan for the monitor.
//
// It is where the defaults are: what a container may do unless somebody said
// otherwise. All that is wrong with a request is found here, before anything is
// made, and the error names the field.
package launch
