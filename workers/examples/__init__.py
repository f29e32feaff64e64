"""Models, weights and data of the presets: real images that install with a package, networks small enough to ship."""
