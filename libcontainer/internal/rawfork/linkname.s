// Functions without a body, as those borrowed by linkname are, need an assembly
// file in their package.
