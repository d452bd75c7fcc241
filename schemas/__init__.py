"""What the data is: records, specs, Arrow schemas, the sample's wire format and the errors."""
