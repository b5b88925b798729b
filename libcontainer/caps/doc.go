// Package caps works with Linux capabilities: their names, the sets of them
// that containers get, and the change of a thread's or a whole process's
// identity to one that holds exactly a given set (capabilities(7)).
//
// A [Cap] is a bit number, a [Set] a mask of them. [Default] and [Docker] are
// the two sets a container may start from, [Adjust] applies --cap-add and
// --cap-drop to one, and [ForContainer] spreads the result over the five sets
// of a thread.
//
// Two ways lead down, neither back up:
//
//   - [Become] changes the calling thread only, by raw system calls. It is for
//     the setup process of a container, which is about to execve.
//   - [DropTo] changes every thread of the process, and checks afterwards that
//     it did. It is for daemons, which go on running Go code on all threads.
//     [Reduce] is the same for a process whose user is right already.
//
// What a daemon holds only to hand it on, or for a few calls, is kept out of
// reach of all others by [SetAside] and [With].
//
// The package holds no state and links neither fmt nor os.
package caps
