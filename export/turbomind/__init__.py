"""The weight folder that LMDeploy's TurboMind engine serves, in the form of releases 0.6 to 0.7.3."""
